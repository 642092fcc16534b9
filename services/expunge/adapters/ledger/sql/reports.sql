-- Reports for auditors: what the catalogue says beside the log. Changes nothing.

-- name: reports_request
select r.type, r.class, r.state, r.body, r.key_id, k.name, r.accepted_at, r.due, r.sweep_id, r.data_result, r.models_result,
       r.images, r.artifacts
from request r left join trusted_key k using (key_id) where r.request_id = %(request_id)s

-- name: reports_certificates
select c.provision, c.sweep_id, c.round, c.result, c.digest, r.at, r.log_index
from certificate c join round r using (sweep_id, round) where c.request_id = %(request_id)s order by r.log_index

-- name: reports_approvers
select key_id, name from trusted_key where role = 'approver'

-- What was kept out of a sweep, by tree: held or cancelled before anything was done. Indices are four bytes each.
-- name: reports_excluded
select sweep_id, tree, reason, sum(octet_length(indices)) / 4 from excluded
where sweep_id = any(%(sweeps)s::uuid[]) group by 1, 2, 3 order by 1, 2, 3

-- name: reports_sources
select s.source_no, s.name, s.provenance, s.closed_at, s.closed_by,
       (select count(*) from image i where i.source_no = s.source_no)
from source s order by s.name

-- Images whose basis is a person's consent, of which no consent, or no person, is on record: the last word of each person
-- counts.
-- name: reports_unconsented
select i.source_no, count(*) from image i join source s using (source_no)
where s.provenance ->> 'consent_basis' = 'explicit-consent'
  and (not exists (select from image_subject p where p.ordinal = i.ordinal)
       or exists (select from image_subject p where p.ordinal = i.ordinal
                  and not coalesce((select c.given from consent c where c.subject_ref = p.subject_ref
                                    order by c.at desc, c.event_id limit 1), false)))
group by 1

-- name: reports_blocks
select source_no, first_ordinal, used from ordinal_block order by first_ordinal

-- name: reports_erased
select e.source_no, e.kind, sum(e.artifacts)::bigint from erased e group by 1, 2 order by 1, 2

-- name: reports_artifacts
select i.source_no, a.kind, count(*) from artifact a join image i using (ordinal) group by 1, 2 order by 1, 2

-- name: reports_purposes
select bit, name from purpose order by bit

-- name: reports_subject_images
select i.ordinal, s.name, i.acquired_on, s.provenance ->> 'consent_basis', s.provenance ->> 'licence'
from image_subject p join image i using (ordinal) join source s using (source_no)
where p.subject_ref = %(subject)s order by s.name, i.ordinal

-- name: reports_subject_artifacts
select a.kind, t.name, a.purposes, count(*)
from image_subject p join artifact a using (ordinal) join store t using (store_no)
where p.subject_ref = %(subject)s group by 1, 2, 3 order by 1, 2, 3

-- name: reports_subject_consents
select at, given, purposes from consent where subject_ref = %(subject)s order by at, event_id

-- name: reports_subject_requests
select request_id, type, state, accepted_at, due, data_result, models_result
from request where subject_ref = %(subject)s order by seq

-- name: reports_subject_holds
select hold_id, at, until, released_at from hold where subject_ref = %(subject)s order by at

-- name: reports_suppressed
select mac from suppressed_subject where mac = any(%(macs)s::bytea[]) and lifted_at is null

-- name: reports_period
select r.type, r.regulation, r.state, count(*), count(*) filter (where r.overdue_index is not null), min(r.due)
from request r where r.accepted_at >= %(start)s and r.accepted_at < %(end)s group by 1, 2, 3 order by 1, 2, 3

-- Seconds from acceptance to the data certificate, of certificates issued in the period.
-- name: reports_period_times
select r.class, count(*), percentile_cont(array[0.5, 0.95, 1]) within group (order by extract(epoch from q.at - r.accepted_at))
from certificate c join round q using (sweep_id, round) join request r using (request_id)
where c.provision = 'data' and q.at >= %(start)s and q.at < %(end)s group by 1 order by 1
