"""The load on a measured service: wrk, which asks again once it is answered, or a crowd, which comes when it likes."""
