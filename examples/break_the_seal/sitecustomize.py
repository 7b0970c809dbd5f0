"""Break the seal on purpose: the engine's process takes a MiB in the middle of serving, which its watch must see.

Python imports a module of this name by itself at its start; `demo.py --break-the-seal` puts this folder on the path of
the server that it starts.  Nothing else does.
"""

import sys

REQUEST = 3  # of those after the server opened, so that what the demo times is not hit

if "hotstart.engine.worker" in sys.orig_argv:
    import torch

    from hotstart.engine.engine import Engine
    from hotstart.engine.messages import Channel, Opened

    send, add = Channel.send, Engine.add
    requests, taken = [], []

    def listening_send(channel, report):
        if isinstance(report, Opened):
            requests.append(0)
        send(channel, report)

    def leaking_add(engine, request):
        if requests:
            requests[0] += 1
            if requests[0] == REQUEST:
                taken.append(engine.device.arena.allocate("demo", (2**20,), torch.uint8))
        add(engine, request)

    Channel.send, Engine.add = listening_send, leaking_add
