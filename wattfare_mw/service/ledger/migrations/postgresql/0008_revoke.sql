-- Take a connection back, in one round trip: its streams go on until this is committed. It does what
-- accounts.revoke does. False if there is no such connection, or if it is not this payer's.
CREATE FUNCTION wattfare_revoke(p_app text, p_user text, p_payer text, p_now_ms bigint)
RETURNS boolean LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_now bigint :=
        COALESCE(p_now_ms / 1000, floor(extract(epoch FROM clock_timestamp()))::bigint);
BEGIN
    UPDATE connections
    SET connected = false, revocations = revocations + 1, changed_at = v_now
    WHERE app_id = p_app AND user_id = p_user AND connected
      AND (p_payer IS NULL OR payer_id = p_payer);
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE payer_connections SET ended_at = v_now, ended = 'revoked'
    WHERE app_id = p_app AND user_id = p_user AND ended_at IS NULL;
    RETURN true;
END $$
