-- The rescanner's own questions; what it shares with the executors is in execute.sql.

-- The checkpoint that published a scope: the smallest that holds its statement.
-- name: rescan_checkpoints
select o.sweep_id, (select c.root from log_checkpoint c where c.size > o.scope_index order by c.size limit 1)
from unnest(%(sweeps)s::uuid[], %(indices)s::bigint[]) as o(sweep_id, scope_index)

-- Where the runs of some sweeps begin: each may have a file of needles.
-- name: rescan_runs
select sweep_id, tree, first_chunk from work where sweep_id = any(%(sweeps)s::uuid[]) order by 1, 2, 3
