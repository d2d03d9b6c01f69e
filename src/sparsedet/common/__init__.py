"""What both halves stand on: errors, configuration, checkpoint files, runtime."""
