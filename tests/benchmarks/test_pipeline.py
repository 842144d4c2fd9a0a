"""The figures of a kernel whose warps specialise, read from a listing of its kind, and what is
wrong with bad ones.
"""

import pytest

from benchmarks.infonce.compile import pipeline, sass
from benchmarks.render import compiled_gluon

LISTING = """
.L_x_0:
        /*0010*/                   USETMAXREG.DEALLOC.CTAPOOL 0x18 ;
.L_x_1:
        /*0100*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R1+URZ], R2 ;
        /*0110*/                   UTMALDG.2D [UR4], [UR6], desc[UR10] ;
        /*0120*/                   UTMALDG.2D [UR4], [UR6], desc[UR10] ;
        /*0130*/               @P1 BRA `(.L_x_1) ;
.L_x_2:
        /*0200*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR5+0x10], R3 ;
        /*0210*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], RZ, !UPT, gsb0 ;
        /*0220*/                   HGMMA.64x128x16.F32.BF16 R88, R4, gdesc[UR8], R88, gsb0 ;
        /*0230*/                   BAR.SYNC.DEFER_BLOCKING 0x2, 0x80 ;
        /*0240*/                   WARPGROUP.DEPBAR.LE gsb0, 0x1 ;
        /*0250*/                   FMNMX R2, R24, R25, !PT ;
        /*0260*/                   MUFU.EX2 R24, R24 ;
        /*0270*/                   MUFU.EX2 R25, R25 ;
        /*0280*/                   WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
        /*0290*/                   SYNCS.ARRIVE.TRANS64.A1T0 RZ, [UR5+0x18], RZ ;
        /*02a0*/               @P1 BRA `(.L_x_2) ;
.L_x_3:
        /*0300*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], RZ, !UPT, gsb0 ;
        /*0310*/                   HGMMA.64x128x16.F32.BF16 R88, R4, gdesc[UR8], R88, gsb0 ;
        /*0320*/                   WARPGROUP.DEPBAR.LE gsb0, 0x1 ;
        /*0330*/                   FSEL R24, R24, -INF , !P0 ;
        /*0340*/                   FSEL R25, R25, -INF , !P0 ;
        /*0350*/                   MUFU.EX2 R24, R24 ;
        /*0360*/                   MUFU.EX2 R25, R25 ;
        /*0370*/                   WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
        /*0380*/                   FMUL R88, R88, R3 ;
        /*0390*/                   FMUL R89, R89, R3 ;
        /*03a0*/                   FMUL R90, R90, R3 ;
        /*03b0*/               @P1 BRA `(.L_x_3) ;
        /*03c0*/                   BAR.SYNC.DEFER_BLOCKING 0x1 ;
        /*03d0*/                   BRA `(.L_x_0) ;
"""
EARLY_WAIT = LISTING.replace("FMNMX R2, R24, R25, !PT ;", "WARPGROUP.DEPBAR.LE gsb0, 0x0 ;")
MASKED_EARLY_WAIT = LISTING.replace(
    "FSEL R25, R25, -INF , !P0 ;", "WARPGROUP.DEPBAR.LE gsb0, 0x0 ;"
)
WIDE_BARRIER = LISTING.replace(
    "0x2, 0x80 ;", "0x2, 0x80 ;\n        /*0238*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;"
)
NO_BARRIER = LISTING.replace("BAR.SYNC.DEFER_BLOCKING 0x2, 0x80 ;", "NOP ;")


def result(listing, variant="train"):
    found = pipeline.figures(sass.parse(listing))
    return {"variant": variant} | found | pipeline.cycles(found, warps=8, schedulers=4)


def test_figures_are_of_the_loop_without_masks_and_the_loop_that_copies():
    assert pipeline.figures(sass.parse(LISTING)) == {
        "matrix": {"HGMMA.64x128x16.F32.BF16": 2},
        "copies": 2,
        "narrow copies": 0,
        "barriers": 1,
        "waits": 2,
        "exponentials": 2,
        "instructions": 11,
        "wide barriers": 0,
        "unguarded": 0,
        "uncovered": 0,
        "exposed": 4,  # the wait, SYNCS.ARRIVE, BRA and, at the top, SYNCS.PHASECHK
    }


def test_cycles_are_those_of_the_busiest_unit_and_of_what_is_exposed():
    figures = pipeline.figures(sass.parse(LISTING))
    # Two consumers: two products of 64 x 128 x 16 each at 2,048 multiply-adds a cycle, two
    # exponentials of 8 warps at 16 a cycle, 11 instructions of 8 warps on 4 schedulers.
    assert 2 * 2 * 64 * 128 * 16 / 2048 == 256
    assert pipeline.cycles(figures, warps=8, schedulers=4) == {
        "busiest": 256,
        "cycles": 256 + 2 * 4,
    }
    assert pipeline.cycles(figures | {"exponentials": 20}, 8, 4)["busiest"] == 20 * 8 * 32 / 16
    assert pipeline.cycles(figures | {"instructions": 300}, 8, 4)["busiest"] == 600
    assert pipeline.cycles(figures | {"uncovered": 1}, 8, 4) == {}


@pytest.mark.parametrize(
    ("listing", "fault"),
    [
        (WIDE_BARRIER, "1 barriers in a tile loop wait for more than a warpgroup"),
        (NO_BARRIER, "1 arrivals in a tile loop follow a wait without a barrier of the warpgroup"),
        (MASKED_EARLY_WAIT, "2 of 2 exponentials run during no product"),
        (EARLY_WAIT, "2 of 2 exponentials run during no product"),
    ],
)
def test_faults_are_named(listing, fault):
    assert pipeline.faults(result(LISTING)) == []
    assert pipeline.faults(result(listing)) == [fault]
    # the other consumer covers its one product
    assert pipeline.faults(result(EARLY_WAIT, "forward")) == []
    late = result(LISTING) | {"busiest": 2048}
    assert pipeline.faults(late | {"cycles": 2500}) == []
    expected = ["takes 2501 cycles a tile, of which the busiest unit needs 2048"]
    assert pipeline.faults(late | {"cycles": 2501}) == expected


@pytest.mark.parametrize("without", ["UTMALDG.2D", "HGMMA", "MUFU.EX2"])
def test_listings_without_its_loops_are_refused(without):
    with pytest.raises(sass.SassError, match="pipeline: expected a loop"):
        pipeline.figures(sass.parse(LISTING.replace(without, "NOP")))


def test_table_shows_the_figures_under_each_version():
    case = {
        "kernel": "gluon_row_sweep",
        "dtype": "bfloat16",
        "width": 128,
        "config": [128, 128, 128, 0, 8, 4],
    }
    case |= result(LISTING)
    others = [
        case | {"dtype": "float16"},
        case | {"kernel": "row_sweep"},
        case | {"instructions": 1100},
    ]
    others.append(case | {"kernel": "gluon_column_sweep"})
    assert compiled_gluon([case, *others]).splitlines()[2:] == [
        "| row | 128 | train | 128 x 128 | 11 / 1,100 | 1 | 0 | 4 | 256 | 264 |",
        "| column | 128 | train | 128 x 128 | 11 | 1 | 0 | 4 | 256 | 264 |",
    ]
