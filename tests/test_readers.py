"""Nothing reads a file back past the kinds of common/readback, checked on the source."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCES = sorted(
    path
    for room in ("common", "client", "server", "simulations", "fedhead")
    for path in (ROOT / room).rglob("*.py")
)

# Who else reads files, and why that needs no check of ours.
OTHERS = {
    "what a person or another program wrote: read as it is, or refused": """
        common/backbone/weights_file.py:_read_pickle
        common/backbone/weights_file.py:_read_safetensors
        common/backbone/weights_file.py:read_tensors
        common/datasets/builtin.py:load_mnist5k
        common/datasets/solar.py:load_elpv
        common/datasets/table.py:_text
        common/images.py:_identified
        common/images.py:read_image
        common/toml_model.py:read_toml
        client/gateway/place.py:read_settings
        simulations/deploy/phones.py:read_names
        simulations/compare/cells.py:_function_source
        simulations/compare/cells.py:_source
        server/export/compare_pixels.py:_array
        server/export/compare_pixels.py:_mistaken
        simulations/deploy/serverapp.py:read_bundle
        server/record/trackers/wandb.py:told_rounds
        simulations/bench/datasets/clipart.py:author_of
        simulations/bench/datasets/debian.py:package_files
    """,
    "keys, secrets and certificates: one that has changed opens no door": """
        client/delivery/authorities.py:check_in
        client/delivery/remote.py:read_authority
        common/delivery/identity.py:Identity._checked
        common/delivery/identity.py:Identity.credentials.changed
        common/delivery/identity.py:Identity.voucher
        common/files.py:read_private
        server/delivery/service.py:_Delivery.check_in
        simulations/bench/fleet/crowd.py:_stubs
        simulations/bench/fleet/deployment.py:make_place
        fedhead/cli/keys.py:show
        fedhead/cli/keys.py:sign
        simulations/deploy/authority.py:_hand_out
        simulations/deploy/authority.py:sign_server
        simulations/deploy/certificates.py:_read_key
        simulations/deploy/certificates.py:certificates_in
        simulations/deploy/certificates.py:public_half
        simulations/deploy/checking_in.py:CheckingIn.poll
        simulations/deploy/checking_in.py:CheckingIn.remember
        simulations/deploy/fleet.py:_digest
        simulations/deploy/gateway.py:run_gateway
        simulations/deploy/operator.py:control
        simulations/deploy/presented.py:Presented.__init__
        simulations/deploy/presented.py:Presented.refresh
        simulations/deploy/trust.py:write_trusted
    """,
    "part of a reader above, which checks what they give": """
        client/backbones.py:Backbones._bytes
        client/gateway/backbones.py:Blobs.part
        client/gateway/backbones.py:_beside
        client/delivery/fetch.py:_download
        client/phone/blobs.py:Blobs._fetch
        common/backbone/frozen.py:FrozenBackbone.load
        common/backbone/frozen.py:_open
        common/features.py:_open
        common/files.py:sha256_file
        common/readback.py:ArraysFile.read
        common/readback.py:JsonFile.read
        common/readback.py:JsonLines.read_as
        common/privacy/ledger.py:Ledger.charge
        server/record/checkpoint.py:_load
        server/delivery/service.py:_open
        server/export/run_model.py:keep_backbone
        server/record/runfolder.py:MetricsLog.__init__
        server/record/runfolder.py:RunFolder.__init__
        simulations/deploy/operator.py:register_folder
        simulations/deploy/phone_files.py:_is_backbone
        simulations/deploy/phone_signing.py:_bring
        server/export/exported.py:_torch
    """,
    "of the same command, or a process of it: nothing lies there for long": """
        server/export/fresh_process.py:FreshProcess._read
        server/export/run_exported.py:load
        server/export/run_head.py:main
        server/export/run_onnx.py:main
        simulations/bench/fleet/orders.py:read_images
        simulations/bench/fleet/orders.py:read_orders
        simulations/bench/fleet/simulate.py:simulate
        simulations/bench/fleet/simulate.py:simulate.tell
        simulations/bench/simulation.py:_check
        simulations/bench/simulation.py:_run
        simulations/bench/work.py:Data.__init__
        simulations/bench/work.py:read_work
        simulations/deploy/checking_in.py:CheckingIn._tell
        simulations/deploy/gateway.py:_refused
        simulations/deploy/launch.py:_refused
        simulations/engines/flower.py:_last_line
        simulations/bench/speed/layers.py:layers
        simulations/bench/speed/measure.py:run_file
        simulations/bench/speed/profile.py:profile_model
        simulations/bench/speed/run_file.py:_torch.open_file
        simulations/bench/speed/run_file.py:main
        simulations/bench/speed/run_trace.py:main
    """,
    "no content of ours: the system's figures, a lock, the package's own file": """
        common/files.py:sync
        common/privacy/ledger.py:Ledger._alone
        common/machine.py:processor
        server/delivery/publish.py:_alone
        server/record/events.py:_EventHandler.__init__
        server/record/lease.py:_follow
        simulations/bench/memory.py:_anonymous_bytes
        simulations/deploy/instructions.py:_template
        simulations/deploy/processes.py:alone
        simulations/deploy/processes.py:is_held
        simulations/bench/speed/run_file.py:_peak_bytes
    """,
}
CALLS = {"read_text", "read_bytes", "load_file", "safe_open", "fromfile", "memmap", "loadtxt"}
LOADS = {"np.load", "numpy.load", "torch.load", "torch.jit.load"}


def is_read(call: ast.Call) -> bool:
    """Whether a call reads a file."""
    name = ast.unparse(call.func)
    if name.rpartition(".")[2] in CALLS or name in LOADS:
        return True
    if name.rpartition(".")[2] != "open":
        return False
    texts = [node.value for node in ast.walk(call) if isinstance(node, ast.Constant)]
    modes = [text for text in texts if isinstance(text, str) and {*text} <= {*"rwxabt+"}]
    return not modes or bool({*modes[0]} & {*"r+"})


def readers(path: Path) -> Iterator[str]:
    """Functions that read files by themselves and are not marked as the reader of a kind."""

    def visit(node: ast.AST, function: str, *, marked: bool) -> Iterator[str]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            function = f"{function}.{node.name}".lstrip(".")
            marked |= any("own_check" in ast.unparse(d) for d in node.decorator_list)
        if isinstance(node, ast.Call) and is_read(node) and not marked:
            yield f"{path.relative_to(ROOT)}:{function}"
        for child in ast.iter_child_nodes(node):
            yield from visit(child, function, marked=marked)

    return visit(ast.parse(path.read_text()), "", marked=False)


def test_nothing_is_read_back_past_the_kinds() -> None:
    found = {reader for path in SOURCES for reader in readers(path)}
    known = {reader for group in OTHERS.values() for reader in group.split()}
    assert found == known
