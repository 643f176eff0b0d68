"""The measured service, once for each library: in a process of its own, or inside of the one that measures."""
