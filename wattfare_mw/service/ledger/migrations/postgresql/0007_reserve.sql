-- Reserve for one call in one round trip. Returns the values it read, so that the service can choose
-- the right error. It implements the rules of rules.py. It replaces 0005_reserve.sql:
-- a reservation says whether the cost has a bound.
--
-- It is atomic under READ COMMITTED, because it locks the payer's row (connection or grant) first.
-- Every other reservation of this payer, and every change of the cap, waits for that lock. Later
-- statements see committed changes. Before a user's first call, there is no row of totals, but there
-- is a connection.
CREATE FUNCTION wattfare_reserve(
    p_id text, p_holder text, p_app text, p_user text, p_grant text, p_model text,
    p_stream boolean, p_unbounded boolean, p_least bigint, p_most bigint, p_needs_cap boolean,
    p_operator_pays boolean, p_ceiling bigint, p_request text,
    p_payer text, p_key text, p_body text, p_now_ms bigint,
    OUT o_now bigint, OUT o_held boolean,
    OUT o_prior text, OUT o_prior_body text, OUT o_prior_ended text,
    OUT o_known boolean, OUT o_connected boolean, OUT o_cap bigint, OUT o_revocations bigint,
    OUT o_requests integer, OUT o_expires_at bigint, OUT o_billed bigint, OUT o_reserved bigint,
    OUT o_granted bigint
) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_now_ms bigint;
    v_month text;
    v_cap bigint;
    v_open boolean;
BEGIN
    IF p_grant IS NULL THEN
        SELECT connected, cap_nanos, revocations INTO o_connected, o_cap, o_revocations
        FROM connections WHERE app_id = p_app AND user_id = p_user FOR UPDATE;
        o_known := FOUND;
        v_cap := CASE WHEN p_operator_pays THEN LEAST(o_cap, p_ceiling) ELSE o_cap END;
    ELSE
        SELECT requests_left, cap_nanos, expires_at, billed_nanos, reserved_nanos, 0
        INTO o_requests, o_cap, o_expires_at, o_billed, o_reserved, o_revocations
        FROM grants WHERE token_hash = p_grant AND app_id = p_app FOR UPDATE;
        o_known := FOUND;
        v_cap := o_cap;
    END IF;

    -- Read the clock after locking: a call that waited past midnight belongs to the new month.
    v_now_ms := COALESCE(p_now_ms, floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint);
    o_now := v_now_ms / 1000;
    v_month := to_char(to_timestamp(o_now) AT TIME ZONE 'UTC', 'YYYY-MM');

    -- Until the commit, this lock stops other processes from declaring this one dead.
    PERFORM 1 FROM holders
    WHERE id = p_holder AND expires_at_ms > v_now_ms FOR KEY SHARE;
    o_held := FOUND;

    IF p_key IS NOT NULL THEN
        SELECT i.reservation_id, i.body_hash, l.ended INTO o_prior, o_prior_body, o_prior_ended
        FROM idempotency i LEFT JOIN ledger l
            ON l.reservation_id = i.reservation_id AND l.corrects IS NULL
        WHERE i.app_id = p_app AND i.payer = p_payer AND i.key_hash = p_key
          AND i.created_at > o_now - 86400;
    END IF;

    IF NOT o_held OR NOT o_known OR o_prior IS NOT NULL THEN
        RETURN;
    END IF;

    IF p_grant IS NULL THEN
        SELECT billed_nanos, reserved_nanos INTO o_billed, o_reserved
        FROM totals WHERE app_id = p_app AND user_id = p_user AND month = v_month FOR UPDATE;
        IF NOT FOUND THEN
            o_billed := 0;
            o_reserved := 0;
        END IF;
        v_open := o_connected;
    ELSE
        v_open := o_requests >= 1 AND o_now < o_expires_at;
    END IF;

    -- NULL means no cap. LEAST ignores NULL.
    o_granted := LEAST(p_most, v_cap - o_billed - o_reserved);
    IF NOT v_open OR o_granted < p_least OR (p_needs_cap AND v_cap IS NULL) THEN
        o_granted := NULL;
        RETURN;
    END IF;

    IF p_grant IS NULL THEN
        INSERT INTO totals (app_id, user_id, month, billed_nanos, reserved_nanos)
        VALUES (p_app, p_user, v_month, 0, o_granted)
        ON CONFLICT (app_id, user_id, month)
        DO UPDATE SET reserved_nanos = totals.reserved_nanos + excluded.reserved_nanos;
    ELSE
        UPDATE grants
        SET requests_left = requests_left - 1, reserved_nanos = reserved_nanos + o_granted
        WHERE token_hash = p_grant;
    END IF;
    INSERT INTO reservations (
        id, app_id, user_id, grant_hash, month, model, reserved_nanos, reserved_at, request_id,
        holder, stream, unbounded, revocations
    ) VALUES (
        p_id, p_app, p_user, p_grant, v_month, p_model, o_granted, o_now, p_request,
        p_holder, p_stream, p_unbounded, o_revocations
    );
    IF p_key IS NOT NULL THEN
        INSERT INTO idempotency (app_id, payer, key_hash, body_hash, reservation_id, created_at)
        VALUES (p_app, p_payer, p_key, p_body, p_id, o_now)
        ON CONFLICT (app_id, payer, key_hash) DO UPDATE
        SET body_hash = excluded.body_hash, reservation_id = excluded.reservation_id,
            created_at = excluded.created_at;
    END IF;
END $$
