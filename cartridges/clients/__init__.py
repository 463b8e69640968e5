"""Clients: who answers when conversations are made. One dialect a file."""
