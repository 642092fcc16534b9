-- Which sweeps hold some of the same artifacts: what one of them found counts for the others. One row per pair, and none
-- where sweeps share nothing, as nearly all do.
create table overlap (
    sweep_id uuid not null,                  -- the later one: its scope file says which leaves (section `overlaps`)
    other_id uuid not null,
    primary key (sweep_id, other_id)
);
create index overlap_other on overlap (other_id);
create view overlapping as -- both ways round
    select sweep_id, other_id from overlap union all select other_id, sweep_id from overlap;

-- Sweeps of which some artifact was given up or is blocked: those that are sealed later ask what they knew, although they
-- have ended.
create table residue (
    sweep_id uuid primary key
);
