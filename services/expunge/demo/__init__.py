"""The demo: a pretend product with real photographs, and the story of what happens when people and a regulator ask.

Everything that Expunge does in it is the real thing, on real servers. Fictional are the product, its sources, the
requests and the order; the photographs are the AT&T Laboratories Cambridge faces, read from the installed wheel.
"""
