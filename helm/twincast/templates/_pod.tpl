{{/*
What all pods have in common. None may write anywhere, gain rights, or speak to Kubernetes. Takes
(list root component).
*/}}
{{- define "twincast.podSecurity" -}}
{{- $component := index . 1 -}}
{{- with index . 0 -}}
serviceAccountName: {{ include "twincast.serviceAccount" . }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  {{- with .Values.security.runAsUser }}
  runAsUser: {{ int . }}
  {{- end }}
  {{- with .Values.security.runAsGroup }}
  runAsGroup: {{ int . }}
  {{- end }}
  {{- with .Values.security.fsGroup }}
  fsGroup: {{ int . }}
  {{- end }}
  seccompProfile:
    type: RuntimeDefault
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
volumes:
  - name: config
    configMap:
      name: {{ include "twincast.fullname" . }}
  - name: secrets
    projected:
      defaultMode: 0440
      sources:
        {{- include "twincast.secretSources" (list . $component) | nindent 8 }}
{{- end }}
{{- end }}

{{- define "twincast.container" -}}
image: {{ include "twincast.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
volumeMounts:
  - name: config
    mountPath: /etc/twincast
    readOnly: true
  - name: secrets
    mountPath: {{ include "twincast.secretsFolder" . }}
    readOnly: true
{{- end }}

{{/* For `twincast status` and the like in the container, too. */}}
{{- define "twincast.configVariable" -}}
- name: TWINCAST_CONFIG
  value: /etc/twincast/twincast.yaml
{{- end }}

{{/*
A deployment's spec, but for its replicas. Takes (list root component values-of-the-component).
*/}}
{{- define "twincast.deployment" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $of := index . 2 -}}
{{- $selector := include "twincast.selector" (list $root $component) -}}
revisionHistoryLimit: 3
strategy:
  type: RollingUpdate
  rollingUpdate:
    maxSurge: 1
    maxUnavailable: 0
selector:
  matchLabels:
    {{- $selector | nindent 4 }}
template:
  metadata:
    labels:
      {{- include "twincast.podLabels" (list $root $component) | nindent 6 }}
      {{- with $of.podLabels }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    annotations:
      # Processes read their configuration once: a change of it starts them anew.
      checksum/config: {{ include "twincast.config" $root | sha256sum }}
      checksum/secret: {{ include "twincast.secretData" $root | sha256sum }}
      {{- if $root.Values.metrics.annotations }}
      prometheus.io/scrape: "true"
      prometheus.io/port: {{ $root.Values.http.port | quote }}
      prometheus.io/path: /metrics
      {{- end }}
      {{- with $of.podAnnotations }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
  spec:
    {{- include "twincast.podSecurity" (list $root $component) | nindent 4 }}
    # Longer than a worker's wait for the hub's answers (15 s).
    terminationGracePeriodSeconds: {{ int $of.terminationGracePeriodSeconds }}
    {{- with $of.priorityClassName }}
    priorityClassName: {{ . }}
    {{- end }}
    {{- with $of.nodeSelector }}
    nodeSelector:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    {{- with $of.tolerations }}
    tolerations:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    {{- with $of.affinity }}
    affinity:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    {{- with $of.topologySpread }}
    topologySpreadConstraints:
      {{- range . }}
      - topologyKey: {{ .topologyKey }}
        maxSkew: {{ int (.maxSkew | default 1) }}
        whenUnsatisfiable: {{ .whenUnsatisfiable | default "ScheduleAnyway" }}
        # Spread among its own version's, while one takes the other's place.
        matchLabelKeys: [pod-template-hash]
        labelSelector:
          matchLabels:
            {{- $selector | nindent 12 }}
      {{- end }}
    {{- end }}
    containers:
      - name: {{ $component }}
        args: [{{ $component }}]
        {{- include "twincast.container" $root | nindent 8 }}
        env:
          {{- include "twincast.configVariable" $root | nindent 10 }}
          {{- with $of.env }}
          {{- toYaml . | nindent 10 }}
          {{- end }}
        ports:
          - name: http
            containerPort: {{ int $root.Values.http.port }}
            protocol: TCP
          {{- if and $root.Values.api.enabled (eq $component "orchestrator") }}
          - name: api
            containerPort: {{ int $root.Values.api.port }}
            protocol: TCP
          {{- end }}
        # It listens before it connects to anything: a minute is for a slow node.
        startupProbe:
          httpGet: { path: /livez, port: http }
          periodSeconds: 2
          failureThreshold: 30
        # Not about RabbitMQ or Redis: a process waits for those by itself, and restarting it would help nobody.
        livenessProbe:
          httpGet: { path: /livez, port: http }
          periodSeconds: 10
          timeoutSeconds: 5
          failureThreshold: 6
        readinessProbe:
          httpGet: { path: /readyz, port: http }
          periodSeconds: 5
          timeoutSeconds: 5
          failureThreshold: 2
        resources:
          {{- toYaml $of.resources | nindent 10 }}
{{- end }}
