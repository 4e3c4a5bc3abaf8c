"""Makes the device, or server, whose Python path this is on another one; FAULT says how.

Python imports this file at its start, before anything of the device's. What the device's own checks
would refuse is done after them: the server has to notice.
"""

import dataclasses
import importlib.abc
import importlib.util
import os
import sys
import time


def nan(request, reply):
    nan = b"\x00\x00\xc0\x7f"  # in float32
    payloads = {
        name: tuple(nan * (len(row) // 4) for row in rows) for name, rows in reply.payloads.items()
    }
    return dataclasses.replace(reply, payloads=payloads)


def foreign(request, reply):
    return dataclasses.replace(reply, fingerprint="f" * 64)


def slow(request, reply):
    time.sleep(float(os.environ["FAULT_SECONDS"]))
    return reply


def stuck(request, reply):
    """From round 2 on."""
    while request.round_number > 1:
        time.sleep(1)
    return reply


def garbled(request, reply):
    """Its reply, to Flower's header, is bytes that no message begins with."""
    from flwr.app import Message
    from flwr.supercore.inflatable.inflatable_object import add_header_to_object_body

    Message.deflate = lambda message: add_header_to_object_body(b"\xff" * 64, message)
    return reply


def thief(description):
    """Says that it is the device that has said what it is already."""
    return dataclasses.replace(description, clients=(int(os.environ["FAULT_CLIENT"]),))


def giant(description):
    return dataclasses.replace(description, num_examples=(2**62,))


def crowd(description):
    many = (*description.clients, *range(1, 100_000))
    examples = description.num_examples * len(many)
    return dataclasses.replace(description, clients=many, num_examples=examples)


def virtual(description):
    return dataclasses.replace(description, simulated=True)


def hosts(module):
    """A server whose runs take simulated clients, who are in no roster."""
    module.of_deployment = lambda server: {}


LIES = (thief, giant, crowd, virtual)
FAULT = globals()[os.environ["FAULT"]]


def lying(host):
    describe = host.describe
    host.describe = lambda request: FAULT(describe(request))
    return host


class Finder(importlib.abc.MetaPathFinder):
    """Finds a module as Python does, and puts the fault into it once it is loaded."""

    def find_spec(self, name, path, target=None):
        if name != ("simulations.deploy.serverapp" if FAULT is hosts else "client.app"):
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def load_with_fault(module):
            load(module)
            if FAULT is hosts:
                hosts(module)
                return
            update, host_of = module.node_update, module.host_of
            if FAULT in LIES:
                module.host_of = lambda *config: lying(host_of(*config))
            else:
                module.node_update = lambda request, *rest: FAULT(request, update(request, *rest))

        spec.loader.exec_module = load_with_fault
        return spec


sys.meta_path.insert(0, Finder())
