"""The same model on other runtimes: as a file that runs without PyTorch, and as an engine of `inference.predict`."""
