-- Revoke a connection in one round trip, because its streams continue until the commit. It does the
-- same as accounts.revoke. Returns false if this payer has no such connection.
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
