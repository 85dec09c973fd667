"""Configuration for a Traefik in front of sidecars, by its version.

setup        what a person wants, checked, as one value
version      what which Traefik can do
dynamic      router, service and transport
static       entry point, provider and agent; and the helper's sidecar.toml
warnings     what may go wrong with it
yaml         text in which every value is quoted
"""
