-- Catalogue, progress, log rows, outbox. Personal data: image_subject, image.key, artifact.locator, request.subject_ref,
-- consent; these rows are themselves erased last (stage certify).

-- Catalogue -----------------------------------------------------------------------------------------------------------

create table source (
    source_no   integer generated always as identity primary key,
    name        text not null unique,
    provenance  jsonb not null,
    closed_by   uuid,
    closed_at   timestamptz
);

-- Ordinals are dense and given out in blocks of 65,536 per source, so that an order over a source is a few ranges.
create table ordinal_block (
    first_ordinal bigint primary key,
    source_no     integer not null references source,
    used          integer not null default 0
);
create index ordinal_block_source on ordinal_block (source_no);
create sequence ordinal_block_no as bigint minvalue 0 start 0;   -- first_ordinal / 65,536 of the next block

create table store (
    store_no smallint generated always as identity primary key,
    name     text not null unique
);

create table unit (
    unit_no  integer generated always as identity primary key,
    store_no smallint not null references store,
    name     text not null,
    unique (store_no, name)
);

create table purpose (
    bit  smallint primary key check (bit between 0 and 61),
    name text not null unique
);

create table image (
    ordinal     bigint primary key,
    source_no   integer not null,
    key         text collate "C" not null,
    digest      bytea not null,
    acquired_on date not null,
    unique (source_no, key)
);

create table image_subject (
    subject_ref text collate "C" not null,
    ordinal     bigint not null,
    primary key (subject_ref, ordinal)
);
create index image_subject_ordinal on image_subject (ordinal);

create sequence artifact_id as bigint maxvalue 281474976710655;
create table artifact (
    ordinal     bigint not null,
    artifact_id bigint not null default nextval('artifact_id'),
    kind        text collate "C" not null,
    store_no    smallint not null,
    unit_no     integer not null,
    locator     text collate "C" not null,
    purposes    bigint not null,             -- bit mask over purpose.bit
    digest      bytea not null,              -- 32 bytes; zeros where none is known
    primary key (ordinal, artifact_id)
);

create table consent (
    event_id    uuid primary key,
    subject_ref text collate "C" not null,
    purposes    bigint not null,
    given       boolean not null,
    at          timestamptz not null
);
create index consent_subject on consent (subject_ref);

create table snapshot (
    snapshot_no integer generated always as identity primary key,
    name        text not null unique,
    purpose_bit smallint not null references purpose,
    root        bytea not null,
    images      bigint not null,
    bitmap      bytea not null,              -- portable Roaring format, ordinals (64-bit)
    grade       text not null,
    at          timestamptz not null
);

create table model (
    model_no       integer generated always as identity primary key,
    name           text not null unique,     -- name@version
    purpose_bit    smallint not null references purpose,
    status         text not null,            -- domain.words.ModelStatus
    metric_void    boolean not null default false,
    weights_digest bytea not null,
    weights_store  text,
    weights_unit   text,
    weights_locator text,
    metrics        jsonb not null,
    manifest       jsonb not null,           -- the registration as it came, references and digests only
    replaced_by    integer references model,
    clean_at       bigint,                   -- evidence log size relative to which the model was found clean
    at             timestamptz not null
);
create table model_snapshot (
    model_no    integer not null references model,
    snapshot_no integer not null references snapshot,
    primary key (model_no, snapshot_no)
);
create table model_edge (
    child_no  integer not null references model,
    parent_no integer not null references model,
    relation  text not null,
    primary key (child_no, parent_no, relation)
);

-- One row per (sweep, image) that is gone: later orders still count it as erased earlier. Packed by sweep and source.
create table tombstone (
    sweep_id  uuid not null,
    source_no integer not null,
    images    bigint not null,
    bitmap    bytea not null,                -- Roaring, ordinals
    primary key (sweep_id, source_no)
);
create index tombstone_source on tombstone (source_no);

-- Images whose purpose was withdrawn: what no model of that purpose may be trained on. One row per sweep and purpose.
create table exclusion (
    sweep_id    uuid not null,
    purpose_bit smallint not null,
    images      bigint not null,
    bitmap      bytea not null,
    log_index   bigint not null,             -- of the sweep's scope statement
    primary key (sweep_id, purpose_bit)
);

-- Artifacts whose rows went because they were verified absent: what reconciliation calls erased. Added up by certify.
create table erased (
    sweep_id  uuid not null,
    source_no integer not null,
    kind      text collate "C" not null,
    artifacts bigint not null,
    primary key (sweep_id, source_no, kind)
);

-- Projection of the suppression journal (which lives outside Postgres and its backups).
create table suppressed_subject (
    mac       bytea primary key,             -- over (subject_ref, purpose) or (subject_ref, '*')
    at        timestamptz not null default clock_timestamp(),  -- when the last request that suppresses was issued
    lifted_at timestamptz                    -- when the consent that lifts it was issued: later than `at`
);
create table suppressed_page (               -- MACs of content digests and locators, 32 bytes each, packed
    page_no bigint generated always as identity primary key,
    macs    bytea not null
);

create table registration_batch (
    batch_id  uuid primary key,
    source_no integer,
    images    bigint not null,
    artifacts bigint not null,
    refused   bigint not null,
    log_index bigint,
    at        timestamptz not null
);

-- Requests and sweeps -------------------------------------------------------------------------------------------------

create table request (
    request_id    uuid primary key,
    seq           bigint generated always as identity,
    type          text not null,
    class         text not null,             -- people | order
    state         text not null,             -- domain.lifecycle.RequestState
    subject_ref   text collate "C",          -- null once the person's rows are gone, and for orders
    purposes      bigint not null,           -- bits withdrawn; -1 for all
    regulation    text not null,
    body          bytea not null,            -- canonical request, nulled (empty) with subject_ref
    body_digest   bytea not null,
    key_id        text not null,
    nonce         text not null,
    accepted_at   timestamptz not null,
    due           timestamptz not null,
    bucket        date not null,             -- key bucket of the request key
    sweep_id      uuid,
    leaf          integer,                   -- index in the sweep's request tree
    images        bigint,
    artifacts     bigint,
    data_result   text,
    data_round    integer,
    models_result text,
    models_round  integer,
    overdue_index bigint,                    -- log index of the statement that says its date was missed
    moved_at      timestamptz not null default clock_timestamp(),
    unique (key_id, nonce)
);
create index request_open on request (class, seq) where state = 'accepted';
create index request_subject on request (subject_ref) where subject_ref is not null;
create index request_sweep on request (sweep_id);
create index request_held on request (request_id) where state = 'held';
create index request_moved on request (moved_at) where state not in ('completed', 'rejected', 'cancelled', 'void');

create table approval (
    request_id uuid not null,
    key_id     text not null,
    scope_root bytea not null,
    at         timestamptz not null,
    primary key (request_id, key_id, scope_root)   -- what was held is planned and approved again
);

create table hold (
    hold_id     uuid primary key,
    subject_ref text collate "C",
    source_no   integer,
    until       timestamptz,
    released_at timestamptz,
    at          timestamptz not null
);

create table sweep (
    sweep_id       uuid primary key,
    class          text not null,
    state          text not null,            -- sealed | awaiting-approval | published | done | void
    bucket         date not null,
    requests       integer not null,
    images         bigint not null,
    leaves         bigint not null,
    trees          jsonb not null,           -- [{kind, store, n, root}]
    scope_digest   bytea not null,           -- SHA-256 of the scope statement's payload: what approvers name
    scope_envelope bytea not null,
    scope_index    bigint not null,          -- in the evidence log
    approved_index bigint,                   -- of the scope-approved statement
    file_digest    bytea not null,
    ordinals       bytea not null,           -- Roaring: every image any request of the sweep touches
    last_artifact  bigint not null default 281474976710655,  -- no artifact of the sweep has a higher id
    rounds         integer not null default 0,
    taint          text not null default 'waiting',   -- waiting | ordered | resolved
    sealed_at      timestamptz not null,
    published_at   timestamptz,
    expires_at     timestamptz,              -- an unapproved scope is void after this
    moved_at       timestamptz not null default clock_timestamp()
);
create index sweep_open on sweep (moved_at) where state in ('sealed', 'awaiting-approval', 'published');

-- Work: a run of chunks of one tree that travels together through the steps.
create table work (
    sweep_id    uuid not null,
    tree        smallint not null,
    first_chunk integer not null,
    end_chunk   integer not null,
    step        text not null,               -- the step now under way, or 'done'
    attempt     integer not null default 0,
    intent_at   timestamptz,                 -- set in the transaction that precedes the first effect of hide or erase
    ordered_at  timestamptz not null default clock_timestamp(),
    not_before  timestamptz,
    primary key (sweep_id, tree, first_chunk)
);
create index work_open on work (ordered_at) where step <> 'done';

-- Leaves that must not be touched: held or cancelled before intent. Indices are packed little-endian uint32.
create table excluded (
    sweep_id uuid not null,
    tree     smallint not null,
    reason   text not null,                  -- held | cancelled
    cause    uuid not null,                  -- the hold or the cancelled request
    indices  bytea not null,
    primary key (sweep_id, tree, cause)
);

-- One signed statement per chunk, step and attempt, with its outcomes, one byte per leaf (0: not covered).
create table outcome (
    sweep_id  uuid not null,
    tree      smallint not null,
    chunk     integer not null,
    step      text not null,
    attempt   integer not null,
    outcomes  bytea not null,
    envelope  bytea not null,
    log_index bigint,
    primary key (sweep_id, tree, chunk, step, attempt)
);
create index outcome_unlogged on outcome (sweep_id) where log_index is null;

-- Completion rounds; request boxes are in files beside the sealed scope files.
create table round (
    sweep_id    uuid not null,
    round       integer not null,
    provision   text not null,
    requests    integer not null,
    envelope    bytea not null,
    log_index   bigint not null,
    file_digest bytea not null,
    issued      boolean not null default false,
    at          timestamptz not null,
    primary key (sweep_id, round)
);
create index round_unissued on round (log_index) where not issued;

create table certificate (
    request_id uuid not null,
    provision  text not null,
    sweep_id   uuid not null,
    round      integer not null,
    result     text not null,
    digest     bytea not null,               -- SHA-256 of the certificate
    position   bigint not null,              -- byte offset of the sealed box in the round's file
    length     integer not null,
    primary key (request_id, provision, sweep_id, round)
);
create index certificate_round on certificate (sweep_id, round);

-- Taint and retraining ------------------------------------------------------------------------------------------------

create table taint (
    sweep_id  uuid not null,
    model_no  integer not null references model,
    requests  bytea not null,                -- Roaring: leaves of the request tree that taint this model
    images    bigint not null,
    direct    bigint not null,
    path      jsonb not null,                -- model names from the model to the one trained on the images
    remedy    text not null,
    due       timestamptz not null,
    resolved_index bigint,                   -- log index of the statement that replaced or destroyed the model
    resolution text,                         -- replaced | destroyed
    overdue_index bigint,
    primary key (sweep_id, model_no)
);
create index taint_open on taint (model_no) where resolved_index is null;

create table retraining (
    job_id     uuid primary key,
    seq        bigint generated always as identity,
    models     integer[] not null,           -- parents before children
    state      text not null,                -- queued | leased | reported | done | failed
    cut        bigint not null,              -- evidence log size at which the exclusion was cut
    excluded   bytea not null,               -- Roaring
    exclusion_digest bytea not null,
    due        timestamptz not null,
    leased_by  text,
    lease_until timestamptz,
    at         timestamptz not null
);
create index retraining_open on retraining (due) where state in ('queued', 'leased');

-- Evidence log rows: index and leaf hash are rows first; tiles and checkpoints derive from them -------------------------

create table log_entry (
    index     bigint primary key,
    leaf_hash bytea not null unique,
    predicate text not null,
    entry     bytea not null,
    at        timestamptz not null default clock_timestamp()
);
create table log_head (
    one  boolean primary key default true check (one),
    next bigint not null
);
insert into log_head (next) values (0);
create table log_checkpoint (
    size bigint primary key,
    root bytea not null,
    note bytea,                               -- with the cosignatures that came in
    cosigned smallint not null default 0,     -- witnesses whose cosignature it has
    token bytea,                              -- RFC 3161 TimeStampResp over the note
    attested boolean not null default false   -- has all that the settings ask for: quorum, and time stamp where it is wanted
);

create table audit_head (                     -- how far stage audit has checked the log's files
    one      boolean primary key default true check (one),
    frontier bytea not null,                  -- domain.merkle.Frontier: size and right edge
    at       timestamptz not null
);

create function refuse_change() returns trigger language plpgsql as $$
begin
    raise exception '% rows are never changed or removed', tg_table_name;
end $$;
create trigger log_entry_immutable before update or delete on log_entry
    for each statement execute function refuse_change();

-- Delivery ------------------------------------------------------------------------------------------------------------

create table applied_event (
    worker   text not null,
    event_id text not null,
    at       timestamptz not null default clock_timestamp(),
    primary key (worker, event_id)
);
create table consumer_offset (
    worker      text not null,
    topic       text not null,
    partition   integer not null,
    next_offset bigint not null,
    primary key (worker, topic, partition)
);
create table outbox (
    id        bigint generated always as identity primary key,
    worker    text not null,
    event_id  text not null,
    topic     text not null,
    key       bytea not null,
    headers   bytea not null,                -- packed (name, value) pairs
    value     bytea not null,
    at        timestamptz not null default clock_timestamp(),
    unique (event_id, topic)
);
create table retry (
    worker     text not null,
    event_id   text not null,
    scope      text not null,                -- later events of the same scope queue behind it
    seq        bigint generated always as identity,
    topic      text not null,
    partition  integer not null,
    "offset"   bigint not null,
    sealed     bytea not null,               -- the message, encrypted under the parking key
    reason     text not null,
    attempts   integer not null default 0,
    not_before timestamptz not null,
    at         timestamptz not null default clock_timestamp(),
    primary key (worker, event_id)
);
create index retry_scope on retry (worker, scope);
create index retry_ready on retry (worker, not_before);
create table dead_letter (
    id        bigint generated always as identity primary key,
    worker    text not null,
    event_id  text,
    topic     text not null,
    partition integer not null,
    "offset"  bigint not null,
    reason    text not null,
    sealed    bytea not null,
    at        timestamptz not null default clock_timestamp(),
    unique (worker, topic, partition, "offset")
);
create table crash (
    worker    text not null,
    topic     text not null,
    partition integer not null,
    "offset"  bigint not null,
    crashes   integer not null,
    primary key (worker, topic, partition, "offset")
);
create table task (
    task_id     bigint generated always as identity primary key,
    kind        text not null,
    key         text not null,
    input       jsonb not null,
    cursor      jsonb not null default '{}',
    token       bigint not null default 0,   -- fencing token: raised at every lease
    lease_until timestamptz,
    not_before  timestamptz not null default clock_timestamp(),
    attempts    integer not null default 0,
    done_at     timestamptz,
    unique (kind, key)
);
create index task_open on task (kind, not_before) where done_at is null;
create sequence fence;                        -- fencing tokens of unit leases
create table unit_lease (
    store       text not null,
    unit        text not null,
    token       bigint not null,
    holder      text not null,
    lease_until timestamptz not null,
    primary key (store, unit)
);
create table trusted_key (
    key_id     text primary key,
    role       text not null,
    name       text not null,
    public     bytea not null,
    scope      jsonb not null,               -- publishers: kinds, sources, purposes, quota; {} for the rest
    valid_from timestamptz not null,
    valid_to   timestamptz
);
