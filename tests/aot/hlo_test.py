# ruff: noqa: E501 - lines as compilers write them
"""Compiled programs read back: small ones by hand, and what a compiler here makes of a program."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np
import pytest

from moemoe_jax.aot import collectives, work
from moemoe_jax.aot.hlo import Module

# As a TPU's compiler prints: a loop of 3 turns around a product, a gather and a sum with a scatter;
# a switch between a product of 2 rows and one of 8; types with layouts; groups in three notations.
PROGRAM = """HloModule jit_step, is_scheduled=true, num_partitions=8

%all-reduce-scatter.1 (p: bf16[16,8]) -> bf16[4,8] {
  %p = bf16[16,8]{1,0:T(8,128)(2,1)} parameter(0)
  %sum = bf16[16,8]{1,0:T(8,128)(2,1)} all-reduce(%p), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %id = s32[] partition-id()
  ROOT %mine = bf16[4,8]{1,0:T(8,128)(2,1)} dynamic-slice(%sum, %id, %id), dynamic_slice_sizes={4,8}
}

%few (f: (f32[2,4], f32[4,4])) -> f32[2,4] {
  %f = (f32[2,4]{1,0}, f32[4,4]{1,0}) parameter(0)
  %f.0 = f32[2,4]{1,0} get-tuple-element(%f), index=0
  %f.1 = f32[4,4]{1,0} get-tuple-element(%f), index=1
  ROOT %product.2 = f32[2,4]{1,0} convolution(%f.0, %f.1), dim_labels=bf_io->bf
}

%many (m: (f32[8,4], f32[4,4])) -> f32[2,4] {
  %m = (f32[8,4]{1,0}, f32[4,4]{1,0}) parameter(0)
  %m.0 = f32[8,4]{1,0} get-tuple-element(%m), index=0
  %m.1 = f32[4,4]{1,0} get-tuple-element(%m), index=1
  %product.3 = f32[8,4]{1,0} convolution(%m.0, %m.1), dim_labels=bf_io->bf
  ROOT %cut = f32[2,4]{1,0} slice(%product.3), slice={[0:2], [0:4]}
}

%body (b: (s32[], bf16[16,8], bf16[8,8])) -> (s32[], bf16[16,8], bf16[8,8]) {
  %b = (s32[]{:T(128)}, bf16[16,8]{1,0:T(8,128)(2,1)}, /*index=2*/bf16[8,8]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%b), index=0
  %x = bf16[16,8]{1,0:T(8,128)(2,1)} get-tuple-element(%b), index=1
  %w = bf16[8,8]{1,0} get-tuple-element(%b), index=2
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%i, %one)
  %product.1 = bf16[16,8]{1,0:T(8,128)(2,1)S(1)} convolution(%x, %w), dim_labels=bf_io->bf
  %part = bf16[4,8]{1,0} fusion(%product.1), kind=kCustom, calls=%all-reduce-scatter.1
  %whole = bf16[16,8]{1,0} all-gather(%part), replica_groups=[2,4]<=[8], dimensions={0}, metadata={op_name="jit(step)/while/body/dot_general" stack_frame_id=1}
  ROOT %tuple = (s32[]{:T(128)}, bf16[16,8]{1,0}, bf16[8,8]{1,0}) tuple(%next, %whole, %w)
}

%condition (c: (s32[], bf16[16,8], bf16[8,8])) -> pred[] {
  %c = (s32[]{:T(128)}, bf16[16,8]{1,0}, bf16[8,8]{1,0}) parameter(0)
  %three = s32[]{:T(128)} constant(3)
  %at = s32[]{:T(128)} get-tuple-element(%c), index=0
  ROOT %lt = pred[]{:T(512)} compare(%at, %three), direction=LT
}

ENTRY %main (x0: bf16[16,8], w0: bf16[8,8]) -> f32[2,4] {
  %x0 = bf16[16,8]{1,0} parameter(0)
  %w0 = bf16[8,8]{1,0} parameter(1)
  %zero = s32[] constant(0)
  %start = (s32[], bf16[16,8]{1,0}, bf16[8,8]{1,0}) tuple(%zero, %x0, %w0)
  %loop = (s32[], bf16[16,8]{1,0}, bf16[8,8]{1,0}) while(%start), condition=%condition, body=%body
  %gradient = f32[100]{0} custom-call(%loop), custom_call_target="Something"
  %total = f32[100]{0} all-reduce(%gradient), replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}, to_apply=%add
  %swap-start = (f32[100]{0}, f32[100]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%total), source_target_pairs={{0,1},{1,0}}
  %swap-done = f32[100]{0} collective-permute-done(%swap-start)
  %alone = f32[100]{0} all-reduce(%swap-done), replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, to_apply=%add
  %sent = (f32[25]{0}, f32[25]{0}) all-to-all(%alone, %alone), replica_groups={{0,1},{2,3},{4,5},{6,7}}
  %args = (f32[2,4]{1,0}, f32[4,4]{1,0}) custom-call(%sent), custom_call_target="Something"
  ROOT %result = f32[2,4]{1,0} conditional(%zero, %args, %args), branch_computations={%few, %many}
}
"""


def test_collectives_count_with_their_loops_and_groups():
    found = {c.kind: c for c in collectives.collectives(Module(PROGRAM))}
    # Three turns of a loop; 16 * 8 * 2 bytes whole, of which three of four parts are sent.
    assert found["all-gather"].sent == 3 * 256 * 3 / 4
    assert found["all-gather"].source == "jit(step)/while/body/dot_general"
    assert (found["reduce-scatter"].group, found["reduce-scatter"].sent) == (4, 3 * 256 * 3 / 4)
    # Once; 400 bytes among two, sent once for the sum and once for the result.
    assert (found["all-reduce"].group, found["all-reduce"].sent) == (2, 2 * 400 / 2)
    assert found["all-to-all"].sent == 200 / 2
    assert found["collective-permute"].sent == 400
    assert len(collectives.collectives(Module(PROGRAM))) == 5  # a group of one sends nothing


@pytest.mark.parametrize(
    ("groups", "members"),
    [
        ("{{0,1},{2,3},{4,5},{6,7}}", 2),
        ("[2,4]<=[8]", 4),
        ("mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", 4),
        ("mesh['axis_0'=8] {'axis_0':(2)4}", 4),
        # The devices in another order: two by two axes of the mesh, turned.
        ("mesh['a'=2,'b'=1,'c'=4], device_ids=([4,2,1]T(1,0,2)) {'a'}", 2),
        ("mesh['a'=2,'b'=1,'c'=4], device_ids=([4,2,1]T(1,0,2)) {'a','c'}", 8),
        ("{}", 8),
    ],
)
def test_groups_are_read_in_every_form(groups, members):
    # Thousands of parameters may stand before what says how many devices there are.
    aliases = "input_output_alias={ " + "{0}: (0, {}, may-alias), " * 10_000 + "}"
    (found,) = collectives.collectives(
        Module(f"""HloModule jit_step, {aliases}, num_partitions=8

ENTRY %main (x: f32[100]) -> f32[100] {{
  %x = f32[100]{{0}} parameter(0)
  ROOT %sum = f32[100]{{0}} all-reduce(%x), channel_id=1, replica_groups={groups}, to_apply=%add
}}
""")
    )
    assert found.group == members


def test_groups_in_an_unknown_form_are_refused():
    text = PROGRAM.replace("replica_groups={{0,1},{2,3},{4,5},{6,7}}", "replica_groups=pairs")
    with pytest.raises(ValueError, match="not known: pairs"):
        collectives.collectives(Module(text))


def test_a_collective_that_runs_beside_several_fusions_counts_once():
    def fusion(number, work):
        return f"""%piece.{number} (p: f32[100]) -> f32[200] {{
  %p = f32[100]{{0}} parameter(0)
  %gather = f32[200]{{0}} all-gather(%p), replica_groups={{{{0,1}}}}, frontend_attributes={{chain_id="3"}}
  ROOT %out = f32[200]{{0}} {work}
}}

"""

    works = (
        'custom-call(%gather), custom_call_target="AsyncCollectiveStart"',
        "copy(%gather)",
        'custom-call(%gather), custom_call_target="AsyncCollectiveDone"',
    )
    pieces = "".join(fusion(number, work) for number, work in enumerate(works))
    calls = "".join(
        f"  %f.{n} = f32[200]{{0}} fusion(%x), kind=kOutput, calls=%piece.{n}\n" for n in range(3)
    )
    (found,) = collectives.collectives(
        Module(f"""HloModule jit_step, num_partitions=2

{pieces}ENTRY %main (x: f32[100]) -> f32[200] {{
  %x = f32[100]{{0}} parameter(0)
{calls}  ROOT %end = f32[200]{{0}} copy(%f.2)
}}
""")
    )
    assert (found.times, found.payload) == (1, 800)


def test_kinds_are_summed_up():
    table = collectives.by_kind(collectives.collectives(Module(PROGRAM)))
    assert list(table) == list(collectives.KINDS)
    assert table["all-gather"] == {"count": 3, "bytes": 576}


def test_products_count_with_their_loops_and_the_usual_branch():
    # Three turns of 16 x 8 x 8, and of the switch the branch with 2 rows: 2 * 2 * 4 * 4.
    assert work.total_flops(Module(PROGRAM)) == 3 * 2 * 16 * 8 * 8 + 64


def test_turns_are_known_where_the_condition_is_a_fusion():
    fused = PROGRAM.replace("%condition (c:", "%compared (c:").replace(
        "ENTRY %main",
        """%condition (v: (s32[], bf16[16,8], bf16[8,8])) -> pred[] {
  %v = (s32[], bf16[16,8]{1,0}, bf16[8,8]{1,0}) parameter(0)
  ROOT %less = pred[] fusion(%v), kind=kLoop, calls=%compared
}

ENTRY %main""",
    )
    assert work.total_flops(Module(fused)) == work.total_flops(Module(PROGRAM))


@pytest.mark.parametrize(
    ("line", "flops"),
    [
        # A batch of 8 x 4 products [128, 32] x [32, 128], written as dilated spatial axes.
        (
            "convolution(%q, %k), window={size=8x4 stride=7x3 lhs_dilate=8x4}, "
            "dim_labels=0b1f_0o1i->01bf",
            2 * 8 * 4 * 128 * 128 * 32,
        ),
        # The same, with padding in place of the stride.
        (
            "convolution(%q, %k), window={size=8x4 pad=7_7x3_3 rhs_reversal=1x1}, "
            "dim_labels=0b1f_0o1i->01bf",
            2 * 8 * 4 * 128 * 128 * 32 * 8 * 4,
        ),
    ],
)
def test_batched_products_are_read_from_convolutions(line, flops):
    outputs = "8,4" if "stride" in line else "15,7"
    text = f"""ENTRY %main (q: f32[8,128,4,32], k: f32[8,128,4,32]) -> f32[] {{
  %q = f32[8,128,4,32]{{3,2,1,0}} parameter(0)
  %k = f32[8,128,4,32]{{3,2,1,0}} parameter(1)
  ROOT %r = f32[{outputs},128,128]{{3,2,1,0}} {line}
}}
"""
    assert work.total_flops(Module(text)) == flops


def test_what_a_fusion_only_reshapes_is_read_by_whom_it_is_for():
    text = """%reshaped (r: f32[4,4]) -> f32[4,4] {
  %r = f32[4,4]{1,0} parameter(0)
  ROOT %same = f32[4,4]{1,0} bitcast(%r)
}

%product (x: f32[2,4], w: f32[4,4]) -> f32[2,4] {
  %x = f32[2,4]{1,0} parameter(0)
  %w = f32[4,4]{1,0} parameter(1)
  %v = f32[4,4]{1,0} fusion(%w), kind=kLoop, calls=%reshaped
  ROOT %y = f32[2,4]{1,0} convolution(%x, %v), dim_labels=bf_io->bf
}

ENTRY %main (a: f32[2,4], b: f32[4,4]) -> f32[2,4] {
  %a = f32[2,4]{1,0} parameter(0)
  %b = f32[4,4]{1,0} parameter(1)
  ROOT %c = f32[2,4]{1,0} fusion(%a, %b), kind=kOutput, calls=%product
}
"""
    assert work.hbm_bytes(Module(text)) == 4 * (2 * 4 + 4 * 4 + 2 * 4)


def test_a_kernel_costs_what_it_says():
    text = """ENTRY %main (x: f32[8,128]) -> f32[8,128] {
  %x = f32[8,128]{1,0} parameter(0)
  %told = f32[8,128]{1,0} custom-call(%x), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"body":"TUzvUgFN","cost_estimate":{"flops":"1200","transcendentals":"0","bytes_accessed":"70"},"needs_layout_passes":true}}
  ROOT %silent = f32[8,128]{1,0} custom-call(%told), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"body":"flops"}}
}
"""
    assert work.total_flops(Module(text)) == 1200
    assert work.hbm_bytes(Module(text)) == 70 + 2 * 8 * 128 * 4  # or else what goes in and out


def test_traffic_counts_slices_as_slices_and_nothing_on_chip():
    text = """%inner (a: f32[10,8], b: f32[1,8], i: s32[]) -> f32[10,8] {
  %a = f32[10,8]{1,0} parameter(0)
  %b = f32[1,8]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %put = f32[10,8]{1,0} dynamic-update-slice(%a, %b, %i, %i)
}

%update (d: f32[10,8], e: f32[1,8], k: s32[]) -> (f32[1,8], f32[10,8]) {
  %d = f32[10,8]{1,0} parameter(0)
  %e = f32[1,8]{1,0} parameter(1)
  %k = s32[] parameter(2)
  %within = f32[10,8]{1,0} fusion(%d, %e, /*index=2*/%k), kind=kLoop, calls=%inner
  %same = f32[10,8]{1,0} bitcast(%within)
  ROOT %both = (f32[1,8]{1,0}, f32[10,8]{1,0}) tuple(%e, /*index=1*/%same)
}

%read (c: f32[10,8], j: s32[]) -> f32[1,8] {
  %c = f32[10,8]{1,0} parameter(0)
  %j = s32[] parameter(1)
  ROOT %cut = f32[1,8]{1,0} dynamic-slice(%c, %j, %j), dynamic_slice_sizes={1,8}
}

ENTRY %main (stack: f32[10,8], at: s32[]) -> f32[10,8] {
  %stack = f32[10,8]{1,0} parameter(0)
  %at = s32[] parameter(1)
  %row = f32[1,8]{1,0} fusion(%stack, %at), kind=kLoop, calls=%read
  %near = f32[1,8]{1,0:S(1)} add(%row, %row)
  %pair = (f32[1,8]{1,0}, f32[10,8]{1,0}) fusion(%stack, %near, /*index=2*/%at), kind=kLoop, calls=%update
  ROOT %out = f32[10,8]{1,0} get-tuple-element(%pair), index=1
}
"""
    # The first fusion reads a row and an index and writes a row (32 + 4 + 32); the sum reads two
    # rows (64) and writes on the chip; the last reads its index and writes two rows (4 + 64).
    assert work.hbm_bytes(Module(text)) == 68 + 64 + 68


# --- what a compiler makes ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compiled():
    """A gradient on 2 x 4 devices: a matrix split over four, a batch over eight, five layers."""
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "fsdp"))

    def loss(w, x):
        def layer(x, w):
            whole = jax.lax.with_sharding_constraint(w, NamedSharding(mesh, PartitionSpec()))
            return jnp.tanh(x @ whole), None

        return jnp.sum(jax.lax.scan(layer, x, w)[0])

    def place(shape, *spec):
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)

    w, x = place((5, 64, 64), None, "fsdp"), place((32, 64), ("data", "fsdp"))
    step = jax.jit(jax.grad(loss), out_shardings=w.sharding)
    return Module(step.lower(w, x).compile().as_text())


def test_a_compiled_program_turns_its_loops(compiled):
    # A device has 4 rows: forward, and two products of the same size backwards, in five layers.
    assert work.total_flops(compiled) == pytest.approx(5 * 3 * 2 * 4 * 64 * 64, rel=1e-6)


def test_a_compiled_program_sends_what_its_shardings_ask_for(compiled):
    gather, total = sorted(collectives.collectives(compiled), key=lambda c: c.kind)
    # A layer's matrix is gathered once, for both passes; its gradient is summed over all devices.
    assert (gather.kind, gather.times, gather.payload) == ("all-gather", 5, 64 * 64 * 4)
    assert (total.kind, total.times, total.payload) == ("all-reduce", 5, 64 * 64 * 4)
    assert (total.group, total.sent) == (8, 5 * 2 * 64 * 64 * 4 * 7 / 8)
