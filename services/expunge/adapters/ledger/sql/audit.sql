-- Stage audit: how far the log was checked, and the rows it is compared with.

-- name: audit_head
select frontier from audit_head

-- name: audit_rows
select string_agg(leaf_hash, ''::bytea order by index),
       string_agg(sha256('\x00'::bytea || entry), ''::bytea order by index)
from log_entry where index >= %(first)s and index < %(end)s

-- name: audit_passed
insert into audit_head (frontier, at) values (%(frontier)s, %(at)s)
on conflict (one) do update set frontier = excluded.frontier, at = excluded.at
