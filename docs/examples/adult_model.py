"""Census incomes: who earns more than 50,000 dollars, by logistic regression on prepared columns.

    headwater run docs/examples/adult_model.py --param data=../shared/data --param l2=1e-4

The data is UCI Adult: one person a line, with "?" for what isn't known.
"""

import os

import headwater as hw
from headwater import col

DATA = os.environ.get("HEADWATER_DATA", "../shared/data")
NUMBERS = ["age", "education_num", "hours_per_week", "gain", "loss"]
CATEGORIES = ["workclass", "marital_status", "occupation", "sex"]


@hw.pipeline
def adult_model(data: str = DATA, l2: float = 1e-4, seed: int = 0):
    """Give the model, and how well it does on a fifth of the people that it hasn't seen."""
    people = hw.read_csv(f"{data}/adult.csv", null_values=["?"])
    people = people.rename({name: name.replace("-", "_") for name in people.columns})
    rows = people.with_columns(
        rich=col("income_per_year") == ">50K",
        gain=(col("capital_gain") + 1).log(),
        loss=(col("capital_loss") + 1).log(),
    ).select("fnlwgt", "education", *NUMBERS, *CATEGORIES, "rich")
    # The same person stays on the same side whatever else the file holds.
    train, test = rows.split(0.8, 0.2, by=["fnlwgt", "age", "education", "occupation"], seed=seed)

    # A value that the training rows don't have, or null, is none of the known ones.
    chain = hw.prep.Standardize(*NUMBERS) | hw.prep.OneHot(*CATEGORIES, unseen="ignore", nulls="ignore")
    prep = chain.fit(train)
    model = hw.train(
        prep.transform(train.drop("fnlwgt", "education")),
        target="rich",
        objective=hw.objectives.LogisticRegression(l2=l2),
        optimizer=hw.optim.lbfgs(),
        seed=seed,
        prep=prep,
    )
    scored = prep.transform(test).predict(model)
    quality = scored.agg(
        people=hw.count(),
        rich=col("rich").cast("float64").mean(),
        auc=hw.metrics.auc("rich", "probability"),
        log_loss=hw.metrics.log_loss("rich", "probability"),
        accuracy=hw.metrics.accuracy("rich", col("probability") > 0.5),
    )
    return {"model": model, "quality": quality}
