{{/*
The configuration file of all processes. Secrets are named by their files only.
*/}}
{{- define "twincast.config" -}}
{{- $secrets := include "twincast.secretsFolder" . -}}
{{- $amqp := dict "url_file" (printf "%s/amqp-url" $secrets) "prefix" .Values.amqp.prefix -}}
{{- if or .Values.amqp.ca.secret .Values.amqp.ca.configMap -}}
{{- $_ := set $amqp "ca_file" (printf "%s/ca/amqp.pem" $secrets) -}}
{{- end -}}
{{- $redis := dict "url_file" (printf "%s/redis-url" $secrets) "prefix" .Values.redis.prefix "cluster" .Values.redis.cluster "timeout" .Values.redis.timeout -}}
{{- if or .Values.redis.ca.secret .Values.redis.ca.configMap -}}
{{- $_ := set $redis "ca_file" (printf "%s/ca/redis.pem" $secrets) -}}
{{- end -}}
{{- if or .Values.redis.sentinel.url .Values.redis.sentinel.existingSecret.name -}}
{{- $_ := set $redis "sentinel_url_file" (printf "%s/redis-sentinel-url" $secrets) -}}
{{- end -}}
{{- with .Values.redis.tlsName -}}
{{- $_ := set $redis "tls_name" . -}}
{{- end -}}
{{- $hubs := dict -}}
{{- range $name, $hub := .Values.hubs -}}
{{- $entry := dict -}}
{{- if not $hub.host -}}
{{- $_ := set $entry "connection_string_file" (printf "%s/hubs/%s" $secrets $name) -}}
{{- end -}}
{{- if $hub.secondary -}}
{{- $_ := set $entry "secondary_connection_string_file" (printf "%s/hubs/%s.secondary" $secrets $name) -}}
{{- end -}}
{{- range $key, $field := dict "host" "host" "auth" "auth" "transport" "transport" "proxy" "proxy" "tier" "tier" "units" "units" "share" "share" "unlimited" "unlimited" "sendTimeout" "send_timeout" "feedback" "feedback" "feedbackLock" "feedback_lock" "feedbackBatching" "feedback_batching" "queryLag" "query_lag" "httpsPort" "https_port" "amqpPort" "amqp_port" "address" "address" -}}
{{- if hasKey $hub $key -}}
{{- $_ := set $entry $field (index $hub $key) -}}
{{- end -}}
{{- end -}}
{{- $ca := $hub.ca | default dict -}}
{{- if or $ca.secret $ca.configMap -}}
{{- $_ := set $entry "ca_file" (printf "%s/ca/hub-%s.pem" $secrets $name) -}}
{{- end -}}
{{- $_ := set $hubs $name $entry -}}
{{- end -}}
{{- $prometheus := dict -}}
{{- if .Values.prometheus.url -}}
{{- $prometheus = dict "url" .Values.prometheus.url "timeout" .Values.prometheus.timeout -}}
{{- with .Values.prometheus.user -}}
{{- $_ := set $prometheus "user" . -}}
{{- end -}}
{{- range $part := list "token" "password" "headers" -}}
{{- if (index $.Values.prometheus $part).secret -}}
{{- $_ := set $prometheus (printf "%s_file" $part) (printf "%s/prometheus-%s" $secrets $part) -}}
{{- end -}}
{{- end -}}
{{- if or .Values.prometheus.ca.secret .Values.prometheus.ca.configMap -}}
{{- $_ := set $prometheus "ca_file" (printf "%s/ca/prometheus.pem" $secrets) -}}
{{- end -}}
{{- end -}}
{{- $config := dict
  "log" (dict "filter" .Values.log.filter "format" .Values.log.format)
  "worker" (dict "slots" .Values.worker.slots "window" .Values.worker.window)
  "http" (dict "listen" (printf "0.0.0.0:%d" (int .Values.http.port)))
  "amqp" $amqp "redis" $redis "hubs" $hubs -}}
{{- if .Values.api.enabled -}}
{{- $api := dict "listen" (printf "0.0.0.0:%d" (int .Values.api.port)) -}}
{{- if .Values.api.tokens.secret -}}
{{- $_ := set $api "tokens_file" (printf "%s/api/tokens" $secrets) -}}
{{- end -}}
{{- with .Values.api.oidc -}}
{{- if .issuer -}}
{{- $oidc := dict "issuer" .issuer "audience" .audience "roles_claim" .rolesClaim "name_claim" .nameClaim "roles" .roles -}}
{{- if .keysUrl -}}
{{- $_ := set $oidc "keys_url" .keysUrl -}}
{{- end -}}
{{- if or .ca.secret .ca.configMap -}}
{{- $_ := set $oidc "ca_file" (printf "%s/ca/oidc.pem" $secrets) -}}
{{- end -}}
{{- $_ := set $api "oidc" $oidc -}}
{{- end -}}
{{- end -}}
{{- if .Values.api.tls.secret -}}
{{- $_ := set $api "tls_cert_file" (printf "%s/api/tls.crt" $secrets) -}}
{{- $_ := set $api "tls_key_file" (printf "%s/api/tls.key" $secrets) -}}
{{- end -}}
{{- $_ := set $config "api" $api -}}
{{- end -}}
{{- with $prometheus -}}
{{- $_ := set $config "prometheus" . -}}
{{- end -}}
{{- mergeOverwrite $config (deepCopy .Values.settings) | toYaml -}}
{{- end }}

{{/*
The secrets and certificates that the configuration names, as sources of one projected volume. Secrets of
the API are for orchestrators only, and secrets of Prometheus for orchestrators and the test pod. Takes (list root component).
*/}}
{{- define "twincast.secretSources" -}}
{{- $component := index . 1 -}}
{{- with index . 0 -}}
{{- $own := include "twincast.fullname" . -}}
{{- $amqp := .Values.amqp.existingSecret -}}
{{- $redis := .Values.redis.existingSecret -}}
- secret:
    name: {{ $amqp.name | default $own }}
    items: [{ key: {{ empty $amqp.name | ternary "amqp-url" $amqp.key | quote }}, path: amqp-url }]
- secret:
    name: {{ $redis.name | default $own }}
    items: [{ key: {{ empty $redis.name | ternary "redis-url" $redis.key | quote }}, path: redis-url }]
{{- with .Values.redis.sentinel }}
{{- if or .url .existingSecret.name }}
- secret:
    name: {{ .existingSecret.name | default $own }}
    items: [{ key: {{ empty .existingSecret.name | ternary "redis-sentinel-url" .existingSecret.key | quote }}, path: redis-sentinel-url }]
{{- end }}
{{- end }}
{{- range $name, $hub := .Values.hubs }}
{{- with $hub.existingSecret }}
- secret:
    name: {{ .name }}
    items: [{ key: {{ .key | default "connection-string" | quote }}, path: {{ printf "hubs/%s" $name | quote }} }]
{{- end }}
{{- if $hub.connectionString }}
- secret:
    name: {{ $own }}
    items: [{ key: {{ printf "hub-%s" $name | quote }}, path: {{ printf "hubs/%s" $name | quote }} }]
{{- end }}
{{- with $hub.secondary }}
- secret:
    name: {{ .name }}
    items: [{ key: {{ .key | default "secondary-connection-string" | quote }}, path: {{ printf "hubs/%s.secondary" $name | quote }} }]
{{- end }}
{{- end }}
{{- if eq $component "orchestrator" }}
{{- with .Values.api }}
{{- if .enabled }}
{{- if .tokens.secret }}
- secret:
    name: {{ .tokens.secret }}
    items: [{ key: {{ .tokens.key | quote }}, path: api/tokens }]
{{- end }}
{{- if .oidc.issuer }}
{{- include "twincast.caSource" (list .oidc.ca "oidc") }}
{{- end }}
{{- with .tls.secret }}
- secret:
    name: {{ . }}
    items: [{ key: tls.crt, path: api/tls.crt }, { key: tls.key, path: api/tls.key }]
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- if ne $component "worker" }}
{{- with .Values.prometheus }}
{{- $prometheus := . }}
{{- if .url }}
{{- range $part := list "token" "password" "headers" }}
{{- with index $prometheus $part }}
{{- if .secret }}
- secret:
    name: {{ .secret }}
    items: [{ key: {{ .key | quote }}, path: prometheus-{{ $part }} }]
{{- end }}
{{- end }}
{{- end }}
{{- include "twincast.caSource" (list .ca "prometheus") }}
{{- end }}
{{- end }}
{{- end }}
{{- include "twincast.caSource" (list .Values.amqp.ca "amqp") }}
{{- include "twincast.caSource" (list .Values.redis.ca "redis") }}
{{- range $name, $hub := .Values.hubs }}
{{- include "twincast.caSource" (list ($hub.ca | default dict) (printf "hub-%s" $name)) }}
{{- end }}
{{- end }}
{{- end }}

{{/* One certificate file. Takes (list ca name). */}}
{{- define "twincast.caSource" -}}
{{- $ca := index . 0 -}}
{{- $item := printf "{ key: %q, path: %q }" ($ca.key | default "ca.crt") (printf "ca/%s.pem" (index . 1)) -}}
{{- if $ca.secret }}
- secret:
    name: {{ $ca.secret }}
    items: [{{ $item }}]
{{- else if $ca.configMap }}
- configMap:
    name: {{ $ca.configMap }}
    items: [{{ $item }}]
{{- end }}
{{- end }}

{{/*
Rules over several values, which the schema cannot word well. Fails with what is wrong.
*/}}
{{- define "twincast.validate" -}}
{{- range $name, $at := dict "amqp" .Values.amqp "redis" .Values.redis -}}
{{- if and $at.url $at.existingSecret.name -}}
{{- fail (printf "%s: give only one of %s.url and %s.existingSecret.name" $name $name $name) -}}
{{- else if not (or $at.url $at.existingSecret.name) -}}
{{- fail (printf "%s: give one of %s.url and %s.existingSecret.name; the chart brings no server of its own" $name $name $name) -}}
{{- end -}}
{{- /* Not in the schema: its messages show what was found, and this has a password. */ -}}
{{- if and $at.url (not (regexMatch (printf "^%ss?://[^[:space:]]+$" $name) $at.url)) -}}
{{- fail (printf "%s.url: must begin with %s:// or %ss:// and have no spaces" $name $name $name) -}}
{{- end -}}
{{- include "twincast.validateCa" (list (printf "%s.ca" $name) $at.ca) -}}
{{- if hasKey (index $.Values.settings $name | default dict) "url" -}}
{{- fail (printf "settings.%s.url would be readable by all in a config map; give it as %s.url or in %s.existingSecret" $name $name $name) -}}
{{- end -}}
{{- end -}}
{{- with .Values.worker.autoscaling -}}
{{- if and .enabled (eq .kind "keda") (contains "," $.Values.amqp.url) (not .existingSecret.name) -}}
{{- fail "worker.autoscaling.existingSecret.name: amqp.url has several addresses, and KEDA takes one; name a secret that has one" -}}
{{- end -}}
{{- end -}}
{{- with .Values.redis.sentinel -}}
{{- if and .url .existingSecret.name -}}
{{- fail "redis.sentinel: give only one of url and existingSecret.name" -}}
{{- else if and $.Values.redis.cluster (or .url .existingSecret.name) -}}
{{- fail "redis.sentinel: a cluster has no sentinels; give only one of redis.cluster and redis.sentinel" -}}
{{- else if and .url (not (regexMatch "^rediss?://[^[:space:]]+$" .url)) -}}
{{- fail "redis.sentinel.url: must begin with redis:// or rediss:// and have no spaces" -}}
{{- end -}}
{{- end -}}
{{- if hasKey (.Values.settings.redis | default dict) "sentinel_url" -}}
{{- fail "settings.redis.sentinel_url would be readable by all in a config map; give it as redis.sentinel.url or in redis.sentinel.existingSecret" -}}
{{- end -}}
{{- if not .Values.hubs -}}
{{- fail "hubs: name at least one, for example hubs.main.existingSecret.name" -}}
{{- end -}}
{{- range $name, $hub := .Values.hubs -}}
{{- $given := list -}}
{{- range $key := list "connectionString" "existingSecret" "host" -}}
{{- if index $hub $key -}}
{{- $given = append $given $key -}}
{{- end -}}
{{- end -}}
{{- if gt (len $given) 1 -}}
{{- fail (printf "hubs.%s: give only one of connectionString, existingSecret and host" $name) -}}
{{- else if not $given -}}
{{- fail (printf "hubs.%s: give one of connectionString, existingSecret and host" $name) -}}
{{- else if ne (empty $hub.host) (empty $hub.auth) -}}
{{- fail (printf "hubs.%s: give host and auth together; auth is for hubs without a connection string" $name) -}}
{{- else if and $hub.host $hub.secondary -}}
{{- fail (printf "hubs.%s: secondary is for hubs with a connection string" $name) -}}
{{- else if and $hub.connectionString (not (regexMatch "^HostName=[^;]+;(.+;)?SharedAccessKey=" $hub.connectionString)) -}}
{{- fail (printf "hubs.%s.connectionString: must be like HostName=...;SharedAccessKeyName=...;SharedAccessKey=..." $name) -}}
{{- end -}}
{{- include "twincast.validateCa" (list (printf "hubs.%s.ca" $name) ($hub.ca | default dict)) -}}
{{- end -}}
{{- range $key := list "token" "password" "headers" -}}
{{- if hasKey ($.Values.settings.otlp | default dict) $key -}}
{{- fail (printf "settings.otlp.%s would be readable by all in a config map; send to a collector in the cluster, and let that add it" $key) -}}
{{- else if hasKey ($.Values.settings.prometheus | default dict) $key -}}
{{- fail (printf "settings.prometheus.%s would be readable by all in a config map; give it in prometheus.%s.secret" $key $key) -}}
{{- end -}}
{{- end -}}
{{- range $name, $hub := .Values.settings.hubs | default dict -}}
{{- if hasKey $hub "connection_string" -}}
{{- fail (printf "settings.hubs.%s.connection_string would be readable by all in a config map; give it as hubs.%s.connectionString" $name $name) -}}
{{- end -}}
{{- end -}}
{{- with .Values.prometheus -}}
{{- if and (not .url) (or .token.secret .user .password.secret .headers.secret .ca.secret .ca.configMap) -}}
{{- fail "prometheus.url: say where it is, or leave all else of prometheus empty" -}}
{{- else if and .token.secret (or .user .password.secret) -}}
{{- fail "prometheus: give only one of a token, and user and password" -}}
{{- else if ne (empty .user) (empty .password.secret) -}}
{{- fail "prometheus: give both user and password.secret, or neither" -}}
{{- /* Not in the schema: its messages show what was found, and this may have a password. */ -}}
{{- else if and .url (not (regexMatch "^https?://[^[:space:]@]+$" .url)) -}}
{{- fail "prometheus.url: must begin with http:// or https:// and have no spaces and no password; give a token as prometheus.token.secret, or a password as prometheus.password.secret" -}}
{{- end -}}
{{- include "twincast.validateCa" (list "prometheus.ca" .ca) -}}
{{- end -}}
{{- $oidc := .Values.api.oidc -}}
{{- if and .Values.api.enabled (not (or .Values.api.tokens.secret $oidc.issuer)) -}}
{{- fail "api.tokens.secret: name the secret with the tokens, or an issuer as api.oidc.issuer; without them the API does not listen where others reach it" -}}
{{- end -}}
{{- if and $oidc.issuer (not $oidc.audience) -}}
{{- fail "api.oidc.audience: say whom the issuer's tokens must be for; others' are not to be taken" -}}
{{- end -}}
{{- if and $oidc.issuer (not (concat $oidc.roles.viewer $oidc.roles.operator $oidc.roles.approver $oidc.roles.admin)) -}}
{{- fail "api.oidc.roles: give values for a role; without one, no token gives any" -}}
{{- end -}}
{{- include "twincast.validateCa" (list "api.oidc.ca" $oidc.ca) -}}
{{- if and .Values.api.enabled (eq (int .Values.api.port) (int .Values.http.port)) -}}
{{- fail (printf "api.port and http.port are both %d" (int .Values.http.port)) -}}
{{- end -}}
{{- with .Values.worker.autoscaling -}}
{{- if gt (int .minReplicas) (int .maxReplicas) -}}
{{- fail (printf "worker.autoscaling: minReplicas (%d) is above maxReplicas (%d)" (int .minReplicas) (int .maxReplicas)) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "twincast.validateCa" -}}
{{- $ca := index . 1 -}}
{{- if and $ca.secret $ca.configMap -}}
{{- fail (printf "%s: give only one of secret and configMap" (index . 0)) -}}
{{- end -}}
{{- end }}
