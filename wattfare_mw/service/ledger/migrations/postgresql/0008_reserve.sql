-- Reserve for one call in one round trip. Returns the values it read, so that the service can choose
-- the right error. It implements the rules of rules.py. It replaces 0007_reserve.sql:
-- totals belong to a payer, a funding must be valid, and the operator's money has two more ceilings.
--
-- It is atomic under READ COMMITTED, because it locks the row that pays (connection or grant) first.
-- Every other reservation on that row, and every change of it, waits for that lock. Later statements
-- see committed changes. Before a user's first call, there is no row of totals, but there is a
-- connection. The operator's totals are locked last: the app's, then those of all apps. Settling a
-- call locks them in the same order.
CREATE FUNCTION wattfare_reserve(
    p_id text, p_holder text, p_app text, p_user text, p_grant text, p_model text,
    p_stream boolean, p_unbounded boolean, p_least bigint, p_most bigint, p_needs_cap boolean,
    p_operator_pays boolean, p_ceiling bigint, p_app_ceiling bigint, p_total_ceiling bigint, p_request text,
    p_payer text, p_key text, p_body text, p_now_ms bigint,
    OUT o_now bigint, OUT o_held boolean,
    OUT o_prior text, OUT o_prior_body text, OUT o_prior_ended text,
    OUT o_known boolean, OUT o_connected boolean, OUT o_cap bigint, OUT o_revocations bigint,
    OUT o_requests integer, OUT o_expires_at bigint, OUT o_billed bigint, OUT o_reserved bigint,
    OUT o_payer text, OUT o_funding text, OUT o_funding_valid boolean,
    OUT o_others bigint, OUT o_app_billed bigint, OUT o_app_reserved bigint,
    OUT o_all_billed bigint, OUT o_all_reserved bigint,
    OUT o_granted bigint
) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_now_ms bigint;
    v_month text;
    v_cap bigint;
    v_open boolean;
    v_operator boolean;
    v_app_left bigint;
    v_all_left bigint;
BEGIN
    IF p_grant IS NULL THEN
        SELECT connected, cap_nanos, revocations, payer_id, funding_id
        INTO o_connected, o_cap, o_revocations, o_payer, o_funding
        FROM connections WHERE app_id = p_app AND user_id = p_user FOR UPDATE;
    ELSE
        SELECT requests_left, cap_nanos, expires_at, billed_nanos, reserved_nanos, 0,
               payer_id, funding_id
        INTO o_requests, o_cap, o_expires_at, o_billed, o_reserved, o_revocations,
             o_payer, o_funding
        FROM grants WHERE token_hash = p_grant AND app_id = p_app FOR UPDATE;
    END IF;
    o_known := FOUND;
    v_cap := o_cap;
    o_funding_valid := true;
    IF o_funding IS NOT NULL THEN
        SELECT state = 'valid' INTO o_funding_valid FROM funding WHERE id = o_funding;
        o_funding_valid := COALESCE(o_funding_valid, false);
    END IF;
    v_operator := p_operator_pays AND o_funding IS NULL
        AND (p_app_ceiling IS NOT NULL OR p_total_ceiling IS NOT NULL);

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
        FROM totals WHERE app_id = p_app AND user_id = p_user AND payer_id = o_payer AND month = v_month
        FOR UPDATE;
        IF NOT FOUND THEN
            o_billed := 0;
            o_reserved := 0;
        END IF;
        IF p_operator_pays AND o_funding IS NULL AND p_ceiling IS NOT NULL THEN
            -- The ceiling limits the user, regardless of the payer. Reservations of other payers
            -- wait for the lock of the connection.
            SELECT COALESCE(sum(billed_nanos + reserved_nanos), 0)::bigint INTO o_others
            FROM totals WHERE app_id = p_app AND user_id = p_user AND payer_id <> o_payer
                AND month = v_month;
            v_cap := LEAST(o_cap, GREATEST(p_ceiling - o_others, 0));
        END IF;
        v_open := o_connected;
    ELSE
        v_open := o_requests >= 1 AND o_now < o_expires_at;
    END IF;

    IF v_operator THEN
        -- Create the rows before locking them. Otherwise the first two calls of a month could
        -- both find no row.
        INSERT INTO operator_totals (scope, month, billed_nanos, reserved_nanos)
        VALUES (p_app, v_month, 0, 0) ON CONFLICT DO NOTHING;
        SELECT billed_nanos, reserved_nanos INTO o_app_billed, o_app_reserved
        FROM operator_totals WHERE scope = p_app AND month = v_month FOR UPDATE;
        INSERT INTO operator_totals (scope, month, billed_nanos, reserved_nanos)
        VALUES ('', v_month, 0, 0) ON CONFLICT DO NOTHING;
        SELECT billed_nanos, reserved_nanos INTO o_all_billed, o_all_reserved
        FROM operator_totals WHERE scope = '' AND month = v_month FOR UPDATE;
        v_app_left := p_app_ceiling - o_app_billed - o_app_reserved;
        v_all_left := p_total_ceiling - o_all_billed - o_all_reserved;
    END IF;

    -- NULL means no cap. LEAST ignores NULL.
    o_granted := LEAST(p_most, v_cap - o_billed - o_reserved, v_app_left, v_all_left);
    IF NOT v_open OR NOT o_funding_valid OR o_granted < p_least
       OR (p_needs_cap AND COALESCE(v_cap, v_app_left, v_all_left) IS NULL) THEN
        o_granted := NULL;
        RETURN;
    END IF;

    IF v_operator THEN
        UPDATE operator_totals SET reserved_nanos = reserved_nanos + o_granted
        WHERE scope IN (p_app, '') AND month = v_month;
    END IF;
    IF p_grant IS NULL THEN
        INSERT INTO totals (app_id, user_id, payer_id, month, billed_nanos, reserved_nanos)
        VALUES (p_app, p_user, o_payer, v_month, 0, o_granted)
        ON CONFLICT (app_id, user_id, payer_id, month)
        DO UPDATE SET reserved_nanos = totals.reserved_nanos + excluded.reserved_nanos;
    ELSE
        UPDATE grants
        SET requests_left = requests_left - 1, reserved_nanos = reserved_nanos + o_granted
        WHERE token_hash = p_grant;
    END IF;
    INSERT INTO reservations (
        id, app_id, user_id, grant_hash, month, model, reserved_nanos, reserved_at, request_id,
        holder, stream, unbounded, revocations, payer_id, funding_id, operator
    ) VALUES (
        p_id, p_app, p_user, p_grant, v_month, p_model, o_granted, o_now, p_request,
        p_holder, p_stream, p_unbounded, o_revocations, o_payer, o_funding, v_operator
    );
    IF p_key IS NOT NULL THEN
        INSERT INTO idempotency (app_id, payer, key_hash, body_hash, reservation_id, created_at)
        VALUES (p_app, p_payer, p_key, p_body, p_id, o_now)
        ON CONFLICT (app_id, payer, key_hash) DO UPDATE
        SET body_hash = excluded.body_hash, reservation_id = excluded.reservation_id,
            created_at = excluded.created_at;
    END IF;
END $$
