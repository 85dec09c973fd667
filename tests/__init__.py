"""Tests of spiffe-sidecar."""
