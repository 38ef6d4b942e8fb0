{{/* Labels of every object; called with (list $ "component"). */}}
{{- define "tandem.labels" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: tandem
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{- end }}

{{/* Labels that select a component's pods: they never change. */}}
{{- define "tandem.selector" -}}
app.kubernetes.io/name: tandem
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* Reference of an image; called with (list $ $.Values.images.operator). */}}
{{- define "tandem.image" -}}
{{- $root := index . 0 -}}{{- $image := index . 1 -}}
{{ $root.Values.images.registry }}/{{ $image.name }}:{{ $image.tag | default $root.Chart.AppVersion }}
{{- end }}

{{- define "tandem.pullSecrets" -}}
{{- with .Values.images.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "tandem.logEnvironment" -}}
- {name: TANDEM_LOG_FORMAT, value: {{ .Values.log.format | quote }}}
- {name: TANDEM_LOG, value: {{ .Values.log.level | quote }}}
{{- end }}
