"""The whole pool in virtual time: scope, middleware, pool, link and driver as they are, in a simulated world."""
