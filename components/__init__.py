"""The system in plain torch, without lightning: network, optimizer, quantization, artifact file, bits per byte."""
