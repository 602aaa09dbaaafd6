"""Many engines behind one address, on Ray Serve: `fleet` starts them. Needs the extra ``scale``.

`front` is the address: it sends a request to the replica that holds its adapter. `replica` is an engine with
the server's application around it, in a process of its own.
"""
