-- Start or renew the lease of a process, record the costs of its streams so far, and return its calls
-- whose connection was revoked. An expired lease is not renewed, because another process may already
-- be settling its calls. Each recorded cost names its payer and, once known, the id of the
-- generation, with which the service asks the provider for the true cost.
CREATE FUNCTION wattfare_renew(
    p_holder text, p_begin boolean, p_lease_ms bigint,
    p_ids text[], p_apps text[], p_users text[], p_grants text[], p_generations text[],
    p_costs bigint[], p_prompts bigint[], p_completions bigint[], p_now_ms bigint,
    OUT o_held boolean, OUT o_revoked text[]
) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_now_ms bigint :=
        COALESCE(p_now_ms, floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint);
BEGIN
    IF p_begin THEN
        INSERT INTO holders (id, expires_at_ms) VALUES (p_holder, v_now_ms + p_lease_ms);
        o_held := true;
    ELSE
        UPDATE holders SET expires_at_ms = v_now_ms + p_lease_ms
        WHERE id = p_holder AND expires_at_ms > v_now_ms;
        o_held := FOUND;
    END IF;
    IF NOT o_held THEN
        RETURN;
    END IF;
    UPDATE reservations r
    SET metered_nanos = m.cost, prompt_tokens = m.prompt, completion_tokens = m.completion,
        generation_id = COALESCE(m.generation, r.generation_id)
    FROM unnest(p_ids, p_apps, p_users, p_grants, p_generations, p_costs, p_prompts, p_completions)
        AS m (id, app, "user", "grant", generation, cost, prompt, completion)
    WHERE r.id = m.id AND r.holder = p_holder AND r.app_id = m.app
      AND r.user_id IS NOT DISTINCT FROM m."user"
      AND r.grant_hash IS NOT DISTINCT FROM m."grant";
    SELECT array_agg(r.id) INTO o_revoked
    FROM reservations r
    JOIN connections c ON c.app_id = r.app_id AND c.user_id = r.user_id
    WHERE r.holder = p_holder AND c.revocations <> r.revocations;
END $$
