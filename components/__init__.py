"""The system in plain torch: network, optimizer, quantisation, artifact file, bits per byte. Never imports lightning."""
