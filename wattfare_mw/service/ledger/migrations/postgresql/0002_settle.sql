-- End a reservation and bill it, exactly once: the process that deletes the row settles it, and a
-- second one finds no row. Returns NULL if there is no such reservation.
CREATE FUNCTION wattfare_settle(
    p_id text, p_ended text, p_generated boolean, p_cost bigint, p_claimed bigint,
    p_prompt_tokens bigint, p_completion_tokens bigint, p_now_ms bigint
) RETURNS bigint LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    r reservations%ROWTYPE;
    v_billed bigint;
BEGIN
    DELETE FROM reservations WHERE id = p_id RETURNING * INTO r;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    v_billed := LEAST(GREATEST(p_cost, 0), r.reserved_nanos);
    IF r.grant_hash IS NULL THEN
        UPDATE totals
        SET billed_nanos = billed_nanos + v_billed,
            reserved_nanos = reserved_nanos - r.reserved_nanos
        WHERE app_id = r.app_id AND user_id = r.user_id AND month = r.month;
    ELSE
        UPDATE grants
        SET billed_nanos = billed_nanos + v_billed,
            reserved_nanos = reserved_nanos - r.reserved_nanos,
            requests_left = requests_left + CASE WHEN p_generated THEN 0 ELSE 1 END
        WHERE token_hash = r.grant_hash;
    END IF;
    INSERT INTO ledger (
        reservation_id, reserved_at, settled_at, app_id, user_id, grant_hash, month, model,
        prompt_tokens, completion_tokens, reserved_nanos, billed_nanos, claimed_nanos, ended,
        request_id
    ) VALUES (
        r.id, r.reserved_at,
        COALESCE(p_now_ms / 1000, floor(extract(epoch FROM clock_timestamp()))::bigint),
        r.app_id, r.user_id, r.grant_hash, r.month, r.model,
        p_prompt_tokens, p_completion_tokens, r.reserved_nanos, v_billed, p_claimed, p_ended,
        r.request_id
    );
    IF NOT p_generated THEN
        -- The call produced nothing, so its key can be reused.
        DELETE FROM idempotency WHERE reservation_id = r.id;
    END IF;
    RETURN v_billed;
END $$
