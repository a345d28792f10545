"""The TPC-H queries of the benchmark as SQL, over tables of the usual names; DuckDB's answers are the reference."""

from __future__ import annotations

SQL = {
    "tpch_q1": """
        SELECT l_returnflag, l_linestatus,
               CAST(sum(l_quantity) AS DOUBLE) AS sum_qty,
               CAST(sum(l_extendedprice) AS DOUBLE) AS sum_base_price,
               CAST(sum(l_extendedprice * (1 - l_discount)) AS DOUBLE) AS sum_disc_price,
               CAST(sum(l_extendedprice * (1 - l_discount) * (1 + l_tax)) AS DOUBLE) AS sum_charge,
               CAST(avg(l_quantity) AS DOUBLE) AS avg_qty,
               CAST(avg(l_extendedprice) AS DOUBLE) AS avg_price,
               CAST(avg(l_discount) AS DOUBLE) AS avg_disc,
               count(*) AS count_order
        FROM lineitem WHERE l_shipdate <= DATE '1998-09-02'
        GROUP BY l_returnflag, l_linestatus ORDER BY l_returnflag, l_linestatus""",
    "tpch_q3": """
        SELECT l_orderkey, CAST(sum(l_extendedprice * (1 - l_discount)) AS DOUBLE) AS revenue,
               o_orderdate, o_shippriority
        FROM customer, orders, lineitem
        WHERE c_mktsegment = 'BUILDING' AND c_custkey = o_custkey AND l_orderkey = o_orderkey
          AND o_orderdate < DATE '1995-03-15' AND l_shipdate > DATE '1995-03-15'
        GROUP BY l_orderkey, o_orderdate, o_shippriority
        ORDER BY revenue DESC, o_orderdate LIMIT 10""",
    "tpch_q5": """
        SELECT n_name, CAST(sum(l_extendedprice * (1 - l_discount)) AS DOUBLE) AS revenue
        FROM customer, orders, lineitem, supplier, nation, region
        WHERE c_custkey = o_custkey AND l_orderkey = o_orderkey AND l_suppkey = s_suppkey
          AND c_nationkey = s_nationkey AND s_nationkey = n_nationkey AND n_regionkey = r_regionkey
          AND r_name = 'ASIA' AND o_orderdate >= DATE '1994-01-01' AND o_orderdate < DATE '1995-01-01'
        GROUP BY n_name ORDER BY revenue DESC""",
    "tpch_q6": """
        SELECT CAST(sum(l_extendedprice * l_discount) AS DOUBLE) AS revenue FROM lineitem
        WHERE l_shipdate >= DATE '1994-01-01' AND l_shipdate < DATE '1995-01-01'
          AND l_discount BETWEEN 0.05 AND 0.07 AND l_quantity < 24""",
    "tpch_q9": """
        SELECT n_name AS nation, EXTRACT(year FROM o_orderdate) AS o_year,
               CAST(sum(l_extendedprice * (1 - l_discount) - ps_supplycost * l_quantity) AS DOUBLE) AS sum_profit
        FROM part, supplier, lineitem, partsupp, orders, nation
        WHERE s_suppkey = l_suppkey AND ps_suppkey = l_suppkey AND ps_partkey = l_partkey
          AND p_partkey = l_partkey AND o_orderkey = l_orderkey AND s_nationkey = n_nationkey
          AND p_name LIKE '%green%'
        GROUP BY n_name, EXTRACT(year FROM o_orderdate) ORDER BY nation, o_year DESC""",
    "tpch_q18": """
        SELECT c_name, c_custkey, o_orderkey, o_orderdate, CAST(o_totalprice AS DOUBLE) AS o_totalprice,
               CAST(sum(l_quantity) AS DOUBLE) AS sum_qty
        FROM customer, orders, lineitem
        WHERE o_orderkey IN (SELECT l_orderkey FROM lineitem GROUP BY l_orderkey HAVING sum(l_quantity) > 300)
          AND c_custkey = o_custkey AND o_orderkey = l_orderkey
        GROUP BY c_name, c_custkey, o_orderkey, o_orderdate, o_totalprice
        ORDER BY o_totalprice DESC, o_orderdate LIMIT 100""",
}
