"""The LightningModule that wraps the network of ``components`` for training and scoring."""
