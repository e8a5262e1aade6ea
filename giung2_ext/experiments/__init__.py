"""The protocols, told as stories; the only place where a config is unpacked."""
