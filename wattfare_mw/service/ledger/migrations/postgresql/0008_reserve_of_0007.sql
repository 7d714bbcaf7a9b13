-- Older versions of the service call this function (0007_reserve.sql). It refuses calls that a payer's
-- own money would pay for, and does not apply the operator's ceilings for an app and for all apps.
CREATE OR REPLACE FUNCTION wattfare_reserve(
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
BEGIN
    PERFORM 1 FROM connections
    WHERE app_id = p_app AND user_id = p_user AND funding_id IS NOT NULL
    UNION ALL
    SELECT 1 FROM grants WHERE token_hash = p_grant AND funding_id IS NOT NULL;
    IF FOUND THEN
        o_now := floor(extract(epoch FROM clock_timestamp()))::bigint;
        o_held := true;
        o_known := false;
        RETURN;
    END IF;
    SELECT n.o_now, n.o_held, n.o_prior, n.o_prior_body, n.o_prior_ended, n.o_known,
           n.o_connected, n.o_cap, n.o_revocations, n.o_requests, n.o_expires_at,
           n.o_billed, n.o_reserved, n.o_granted
    INTO o_now, o_held, o_prior, o_prior_body, o_prior_ended, o_known,
         o_connected, o_cap, o_revocations, o_requests, o_expires_at,
         o_billed, o_reserved, o_granted
    FROM wattfare_reserve(
        p_id, p_holder, p_app, p_user, p_grant, p_model, p_stream, p_unbounded, p_least, p_most,
        p_needs_cap, p_operator_pays, p_ceiling, NULL, NULL, p_request, p_payer, p_key, p_body,
        p_now_ms
    ) AS n;
END $$
