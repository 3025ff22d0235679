"""The vocabulary of every part: messages, parameters, close codes, and one end of a WebSocket."""
