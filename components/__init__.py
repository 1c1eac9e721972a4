"""The system in plain torch, without lightning: network, optimizer, quantisation, artifact file, bits per byte."""
