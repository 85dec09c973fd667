"""Pure: values in, values out. No IO, no trio, no logging and no clock in this folder."""
