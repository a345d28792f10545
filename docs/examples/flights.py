"""New York's airports in 2013: weather joined with airports, daily aggregates by origin, planes by maker.

headwater run docs/examples/flights.py --param data=../shared/data/nycflights13
"""

import os

import headwater as hw
from headwater import col

DATA = os.environ.get("HEADWATER_DATA", "../shared/data") + "/nycflights13"


@hw.pipeline
def flights(data: str = DATA):
    """Give the weather of each day and airport, the windiest days, and planes by maker."""
    weather = hw.read_csv(f"{data}/weather.csv", null_values=["NA"])
    airports = hw.read_csv(f"{data}/airports.csv", null_values=["NA"])
    planes = hw.read_csv(f"{data}/planes.csv", null_values=["NA"])

    hourly = weather.join(
        airports.select("faa", airport=col("name")), left_on="origin", right_on="faa", how="left"
    ).with_columns(celsius=(col("temp") - 32) * 5 / 9)

    daily = hourly.group_by("origin", "airport", "month", "day").agg(
        hours=hw.count(),
        celsius=col("celsius").mean(),
        coldest=col("celsius").min(),
        warmest=col("celsius").max(),
        wind=col("wind_speed").max(),
        rain=col("precip").sum(),
    )
    by_maker = planes.group_by("manufacturer").agg(
        planes=hw.count(),
        models=col("model").n_unique(),
        oldest=col("year").min(),
        seats=col("seats").mean(),
    )
    return {
        "daily": daily.sort("origin", "month", "day"),
        "windiest": daily.sort(
            "wind", "origin", "month", "day", descending=[True, False, False, False]
        ).limit(10),
        "by_maker": by_maker.sort("planes", "manufacturer", descending=[True, False]),
    }
