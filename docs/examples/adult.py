"""Census incomes: cleaned, aggregated, split into train and test, written as Parquet.

    headwater run docs/examples/adult.py --param data=../shared/data --param out=adult-out

The data is UCI Adult: one person a line, with "?" for what isn't known.
"""

import os

import headwater as hw
from headwater import col

DATA = os.environ.get("HEADWATER_DATA", "../shared/data")


@hw.pipeline
def adult(data: str = DATA, out: str = "adult-out", seed: int = 0):
    """Give incomes by education, and a train and a test set in folders by sex."""
    people = hw.read_csv(f"{data}/adult.csv", null_values=["?"])
    people = people.rename({name: name.replace("-", "_") for name in people.columns})

    clean = people.drop_nulls("workclass", "occupation", "native_country").with_columns(
        rich=col("income_per_year") == ">50K",
        gain=col("capital_gain") - col("capital_loss"),
    )
    by_education = (
        clean.group_by("education", "education_num")
        .agg(
            people=hw.count(),
            rich=col("rich").cast("int64").mean(),
            age=col("age").mean(),
            hours=col("hours_per_week").mean(),
        )
        .sort("education_num", descending=True)
    )
    # The same person stays on the same side whatever else the file holds.
    train, test = clean.split(0.8, 0.2, by=["fnlwgt", "age", "education", "occupation"], seed=seed)
    return {
        "by_education": by_education,
        "train": train.write_parquet(f"{out}/train", partition_by="sex", if_exists="overwrite"),
        "test": test.write_parquet(f"{out}/test", partition_by="sex", if_exists="overwrite"),
    }
