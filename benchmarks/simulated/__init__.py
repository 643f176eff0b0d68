"""The gate's overload policy beside others, in a simulation: without sockets, without an event loop."""
