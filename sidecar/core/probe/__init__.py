"""What `probe` asks, and what it concludes.

report       the request and all that came of it, as values
target       a URL -> host, port and path
http         one request as bytes, the answer from bytes
peer         what the peer presented
answer       an answer that is a refusal -> whose it is
faults       what was met -> the hop that failed, and what to do
notes        what is no fault, and worth a look
"""
