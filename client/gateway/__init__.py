"""The gateway: a node whose clients are phones.

A Flower SuperNode takes the server's messages; its ClientApp, ``bridge``, hands them to one
long-lived process, ``service``, which phones call over gRPC. The service never imports torch.

=============  ==================================================================================
``service``    the process: the phones' calls, TLS, the start and the end
``door``       who calls, and how many calls one phone may have at once
``listening``  messages of the SuperNode, over a unix socket; ``bridge`` is its other end
``server``     what those messages ask: describe, backbone, train, evaluate
``presence``   which phones were there lately, and when they are to come back
``runs``       what runs are about, as phones are told
``backbones``  files of backbones for phones
``orders``     what a task of a round is, what its result must be like, and the round's reply
``judge``      whether a phone's result may be aggregated
``rounds``     the open rounds and their tasks; ``kept`` has them on the disk
``settling``   each result is checked, kept and counted once
``past``       what became of the tasks of rounds that are forgotten
``uploads``    arrays that arrive in parts
``figures``    counters, for people and tests
=============  ==================================================================================
"""
