"""The figures of machine code: the parser on a recorded listing, the occupancy on NVIDIA's numbers,
the comparison.
"""

import json
from pathlib import Path

import pytest

from benchmarks.infonce.compile import record, sass
from benchmarks.infonce.compile.occupancy import programs_per_multiprocessor
from benchmarks.render import TABLES

LISTING = (Path(__file__).parent / "row_sweep.sass").read_text(encoding="utf-8")
"""An excerpt of the row sweep in bfloat16 at d = 1,024 for sm_90: nvdisasm -c, without most of its
arithmetic.

The positives' products are one loop; unmasked and masked tiles are two, each with a loop over 16
slices of the width.
"""
AMPERE = """
.L_x_1:
        /*0100*/                   LDGSTS.E.BYPASS.LTC128B.128.ZFILL [R1], desc[UR4][R2.64], P0 ;
        /*0110*/                   LDGSTS.E.LTC128B [R1], [R2.64] ;
        /*0120*/                   LDGSTS.E.64 [R1+0x8], [R2.64] ;
        /*0130*/                   HMMA.16816.F32.BF16 R4, R8.reuse, R12, RZ ;
        /*0140*/              @!P2 MUFU.EX2 R4, R4 ;
        /*0150*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0160*/               @P1 CALL.REL.NOINC `(.L_x_2) ;
        /*0170*/                   BRA `(.L_x_1) ;
.L_x_2:
        /*0180*/                   STL.64 [R1], R2 ;
        /*0190*/                   LDL R2, [R1] ;
        /*01a0*/                   EXIT ;
.L_x_3:
        /*01b0*/                   BRA `(.L_x_3);
"""
RESULT = {
    "kernel": "row_sweep",
    "variant": "train",
    "kind": "half",
    "dtype": "bfloat16",
    "width": 128,
    "arch": 90,
    "config": [128, 64, 128, 0, 8, 3],
    "programs": 1,
    "stack": 0,
    "local": 0,
    "matrix": {"HGMMA.64x128x16.F32.BF16": 4, "HGMMA.64x64x16.F32.BF16": 8},
    "copies": 4,
    "instructions": 400,
    "seconds": 1.0,
    "faults": [],
}
COMBINE = {"kernel": "combine", "kind": "", "programs": 5, "instructions": 1500}
COMPILER = {"triton": "3.9.1", "ptxas": "12.9.86"}


def test_figures_of_the_tile_loop_count_its_inner_loop_as_often_as_it_runs():
    # 54 instructions from .L_x_7 to its branch; the 19 from .L_x_6 to its branch, among them, run
    # 16 times.
    found = sass.figures(sass.parse(LISTING), slices=16)
    assert found == {
        "matrix": {"HGMMA.64x128x16.F32.BF16": 4, "HGMMA.64x32x16.F32.BF16": 64},
        "copies": 8 + 16 * 4,
        "narrow copies": 0,
        "barriers": 8 + 16 * 2,
        "waits": 2 + 16 * 1,
        "exponentials": 3,
        "instructions": 54 - 19 + 16 * 19,
    }
    # Eight warps form a tile of 64 x 64: its scores at depth 1,024, and 256 columns of the second
    # product.
    assert 8 * sass.multiply_adds(found["matrix"]) == 64 * 64 * (1024 + 256)


def test_loops_that_end_in_a_plain_branch_and_narrow_copies():
    listing = sass.parse(AMPERE)
    assert sass.figures(listing, slices=1) == {
        "matrix": {"HMMA.16816.F32.BF16": 2},
        "copies": 1,
        "narrow copies": 2,
        "barriers": 0,
        "waits": 0,
        "exponentials": 1,
        "instructions": 8,
    }
    assert sass.local_accesses(listing) == 2
    assert sass.local_accesses(sass.parse(LISTING)) == 0


def test_without_a_matrix_unit_the_multiply_adds_are_the_products():
    listing = sass.parse(AMPERE.replace("HMMA.16816.F32.BF16", "FFMA.FTZ"))
    assert sass.figures(listing, slices=1)["matrix"] == {"FFMA": 2}


def test_multiply_adds_of_a_warp():
    counts = {
        "HMMA.16816.F32.BF16": 2048,
        "HGMMA.64x32x8.F32.TF32": 4096,
        "DMMA.884": 256,
        "DMMA.16x8x16": 2048,
    }
    for name, count in (counts | {"FFMA": 32}).items():
        assert sass.multiply_adds({name: 3}) == 3 * count


@pytest.mark.parametrize("text", ["", "Fatal: not a cubin", AMPERE.replace("MUFU.EX2", "MUFU.RCP")])
def test_listings_without_a_tile_loop_are_refused(text):
    with pytest.raises(sass.SassError, match="sass: expected"):
        sass.figures(sass.parse(text), slices=1)


@pytest.mark.parametrize("arch", [80, 90])
def test_occupancy_of_the_best_practices_guide(arch):
    """With 37 registers, programs of 128 threads fill 75 % of a multiprocessor, those of 320
    threads 63 %.
    """
    assert programs_per_multiprocessor(arch, 4, 37, 0) * 128 == 0.75 * 2048
    assert programs_per_multiprocessor(arch, 10, 37, 0) * 320 == 0.625 * 2048


def test_occupancy_of_cuda_occupancy_h():
    """Values of cudaOccMaxActiveBlocksPerMultiprocessor of CUDA 13.0: arch, warps, registers,
    shared, programs.
    """
    for *given, programs in [
        (80, 1, 37, 0, 32),
        (80, 4, 168, 0, 3),
        (80, 8, 37, 12345, 6),
        (80, 10, 255, 0, 0),
        (80, 8, 80, 166912, 1),
        (80, 8, 80, 167936, 0),
        (90, 1, 37, 12345, 17),
        (90, 8, 37, 232449, 0),
    ]:
        assert programs_per_multiprocessor(*given) == programs, given


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"stack": 8}, "spills: 8 bytes of stack, 0 accesses to local memory"),
        ({"shared": 227 * 1024 + 1}, "asks for 232449 bytes of shared memory"),
        (
            {"matrix": {"HMMA.16816.F32.BF16": 64}},
            "expected the products by HGMMA.64x, got {'HMMA.16816.F32.BF16': 64}",
        ),
        (
            {"products": 0.5},
            "the tile loop that was found holds only 0.5 of the products of a tile",
        ),
    ],
)
def test_faults_are_named(change, fault):
    sound = RESULT | {"shared": 227 * 1024, "products": 1.0}
    assert record.faults(sound) == []
    assert record.faults(sound | change) == [fault]


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        ({}, []),
        ({"instructions": 408, "copies": 9, "programs": 2, "barriers": 99}, []),
        ({"instructions": 409}, ["instructions 409, recorded 400 (+2.2%)"]),
        ({"copies": 3}, ["copies 3, recorded 4"]),
        ({"programs": 0}, ["programs 0, recorded 1"]),
        (
            {"matrix": {"HGMMA.64x32x16.F32.BF16": 24}},
            [
                "matrix instructions HGMMA.64x32x16.F32.BF16, recorded HGMMA.64x128x16.F32.BF16, "
                "HGMMA.64x64x16.F32.BF16"
            ],
        ),
        ({"width": 64}, ["is not in the record"]),
    ],
)
def test_worse_figures_are_named(change, lines):
    now = RESULT | change
    assert record.worse([now], [RESULT], complete=False) == [
        f"{record.name(now)}: {line}" for line in lines
    ]


def test_kernels_that_are_no_longer_compiled_are_named():
    gone = RESULT | COMBINE  # which has no matrix instructions
    del gone["matrix"], gone["copies"]
    assert record.worse([RESULT], [RESULT, gone], complete=False) == []
    expected = "combine train, bfloat16, d=128, sm_90: is in the record and is no longer compiled"
    assert record.worse([RESULT], [RESULT, gone], complete=True) == [expected]
    assert len(record.worse([gone | {"instructions": 1600}], [gone], complete=True)) == 1


def test_record_has_one_line_a_kernel_in_order(tmp_path):
    path = record.write(COMPILER, [RESULT, RESULT | {"arch": 80}], folder=tmp_path)
    assert path.name == "compile-triton3.9.json"
    assert [each["arch"] for each in json.loads(path.read_text())["cases"]] == [80, 90]
    assert sum('"kernel"' in line for line in path.read_text().splitlines()) == 2
    first = path.read_bytes()
    record.write(COMPILER, [RESULT | {"arch": 80, "seconds": 2.0}, RESULT], folder=tmp_path)
    assert path.read_bytes() == first
    assert record.worse([RESULT], record.read(COMPILER, tmp_path), complete=False) == []
    for other in ({"ptxas": "12.8.93"}, {"triton": "3.8.0"}):
        assert record.read(COMPILER | other, tmp_path) is None
    record.write(
        COMPILER,
        [RESULT],
        [RESULT | {"kernel": "combine"}, RESULT | {"instructions": 500}],
        tmp_path,
    )
    found = json.loads(path.read_text())
    assert [(each["kernel"], each["instructions"]) for each in found["cases"]] == [
        ("combine", 400),
        ("row_sweep", 400),
    ]
    assert "2 of 2 kernels have no digest" in found["stale"]


def test_table_shows_the_widest_case_of_a_tiling_under_each_version():
    figures = {"registers": 187, "barriers": 3, "narrow copies": 0, "issue": 800}
    one = RESULT | figures
    two = one | {"registers": 198, "narrow copies": 3, "instructions": 1367}
    narrow = one | {"width": 96, "registers": 1}
    other = one | {"variant": "tau"}
    assert TABLES["compiled"](
        [narrow, one, other, RESULT | figures | {"dtype": "float16"}, two]
    ).splitlines()[2:] == [
        "| sm_90 | bfloat16, 128 | row | 128 x 64 | 187 / 198 | 1 | HGMMA 64x128x16, 64x64x16 | 4 "
        "/ 4 + 3 | 3 "
        "| 400 / 1,367 | 800 |"
    ]
    sigmoid = TABLES["compiled_sigmoid"]([one, one | {"kernel": "sigmoid_rows"}])
    assert "| rows | 128 x 64 |" in sigmoid
    assert len(sigmoid.splitlines()) == 3
    symmetric = TABLES["compiled_symmetric"]([one, one | {"kernel": "symmetric_sums"}])
    assert "| sums | 128 x 64 |" in symmetric


def test_only_kernels_of_other_code_are_compiled_again(monkeypatch):
    pytest.importorskip("adaftr_fast.kernels", exc_type=ImportError)
    from benchmarks.infonce.compile import build, cases

    monkeypatch.setattr(build, "_digest", lambda case: "0123")
    monkeypatch.setattr(build.triton, "compile", None)  # is not called
    case = next(cases.cases([90], quick=True))
    same = RESULT | {"code": "0123", "shared": 0, "products": 1.0, "programs": case.config.programs}
    assert build.build(case, same) == same | {"stack": 0, "local": 0, "seconds": 0.0, "faults": []}
    fewer = same | {"programs": case.config.programs - 1}
    # the record is checked as what is compiled is
    assert len(build.build(case, fewer)["faults"]) == 1
    with pytest.raises(TypeError):
        build.build(case, RESULT | {"code": "4567"})
