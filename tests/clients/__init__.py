"""Programs that are the clients of tests/scenarios/test_real_clients.py, one for each language.

Arguments: the URL of the daemon, and for TLS a folder with cert.pem, key.pem and ca.pem. Each step
writes a line: its name, the status, the version of HTTP, and the body in base64. In a stream there
is such a line for each event as it comes, which lets the model server say the next.
"""
