from django.db import models


class Order(models.Model):
    name = models.CharField(max_length=40)
    state = models.CharField(max_length=10, default="new")
