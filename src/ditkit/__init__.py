"""ditkit."""
