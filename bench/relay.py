"""What a token costs the server on its way from the model's endpoint to the client."""
