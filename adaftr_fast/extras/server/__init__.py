"""An HTTP server of an exported model."""
