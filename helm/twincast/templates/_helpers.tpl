{{- define "twincast.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{ .Values.fullnameOverride | trunc 48 | trimSuffix "-" }}
{{- else if contains "twincast" .Release.Name -}}
{{ .Release.Name | trunc 48 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-twincast" .Release.Name | trunc 48 | trimSuffix "-" }}
{{- end -}}
{{- end }}

{{/* What selects pods: never changes for a release. Takes (list root component). */}}
{{- define "twincast.selector" -}}
app.kubernetes.io/name: twincast
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* Labels of what is there once. Takes the root. */}}
{{- define "twincast.common" -}}
app.kubernetes.io/name: twincast
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* Labels of what belongs to one kind of process. Takes (list root component). */}}
{{- define "twincast.labels" -}}
{{ include "twincast.common" (index . 0) }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* Those of a pod. Takes (list root component). */}}
{{- define "twincast.podLabels" -}}
{{ include "twincast.labels" . }}
{{- if (index . 0).Values.workloadIdentity.clientId }}
azure.workload.identity/use: "true"
{{- end }}
{{- end }}

{{- define "twincast.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default (include "twincast.fullname" .) }}
{{- else -}}
{{ .Values.serviceAccount.name | default "default" }}
{{- end -}}
{{- end }}

{{- define "twincast.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* Where the files with secrets and certificates are. */}}
{{- define "twincast.secretsFolder" -}}/run/secrets/twincast{{- end }}
