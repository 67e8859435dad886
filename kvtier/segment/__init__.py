"""Append-only segment files: format, writer, reader, scanner."""
