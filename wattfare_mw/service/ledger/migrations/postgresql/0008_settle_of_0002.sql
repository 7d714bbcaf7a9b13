-- Older versions of the service call this function (0002_settle.sql). They do not pass the account.
CREATE OR REPLACE FUNCTION wattfare_settle(
    p_id text, p_ended text, p_generated boolean, p_cost bigint, p_claimed bigint,
    p_prompt_tokens bigint, p_completion_tokens bigint, p_now_ms bigint
) RETURNS bigint LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    RETURN (
        SELECT wattfare_settle(
            id, app_id, user_id, grant_hash, p_ended, p_generated, p_cost, p_claimed,
            p_prompt_tokens, p_completion_tokens, p_now_ms
        ) FROM reservations WHERE id = p_id
    );
END $$
