"""Foundation models: loading them, looking inside, sharing their memory, and what is put onto them."""
